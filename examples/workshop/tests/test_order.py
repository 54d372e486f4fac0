from odoo.exceptions import UserError
from odoo.tests import TransactionCase, tagged


@tagged("post_install", "-at_install")
class TestOrder(TransactionCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        partner = cls.env["res.partner"].create({"name": "Customer"})
        bike = cls.env["workshop.bike"].create({"name": "Bicycle", "partner_id": partner.id})
        cls.service = cls.env["workshop.service"].create({"name": "Service", "price": 20.0})
        cls.order = cls.env["workshop.order"].create({"partner_id": partner.id, "bike_id": bike.id})

    def test_total_is_the_sum_of_the_services_at_their_price_then(self):
        self.order.line_ids = [(0, 0, {"service_id": self.service.id, "quantity": 2})]
        self.service.price = 99.0
        self.assertEqual(self.order.total, 40.0)

    def test_a_repair_is_ready_only_after_it_began_and_something_was_done(self):
        with self.assertRaises(UserError):
            self.order.action_finish()
        self.order.action_start()
        with self.assertRaises(UserError):
            self.order.action_finish()
        self.order.line_ids = [(0, 0, {"service_id": self.service.id})]
        self.order.action_finish()
        self.assertEqual(self.order.state, "ready")
