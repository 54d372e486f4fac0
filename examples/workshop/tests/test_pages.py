from odoo.tests import HttpCase, tagged


@tagged("post_install", "-at_install")
class TestPages(HttpCase):
    def test_anyone_sees_the_published_services_only(self):
        self.env["workshop.service"].create([
            {"name": "Shown service", "price": 1.0},
            {"name": "Hidden service", "price": 1.0, "published": False},
        ])
        response = self.url_open("/workshop")
        self.assertEqual(response.status_code, 200)
        self.assertIn("Shown service", response.text)
        self.assertNotIn("Hidden service", response.text)
