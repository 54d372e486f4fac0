from odoo.exceptions import ValidationError
from odoo.tests import TransactionCase, tagged


@tagged("post_install", "-at_install")
class TestLoan(TransactionCase):
    def test_a_bicycle_is_lent_to_one_customer_at_a_time(self):
        partner = self.env["res.partner"].create({"name": "Customer"})
        bike = self.env["workshop.bike"].create({"name": "Bicycle", "partner_id": partner.id})
        loan = self.env["workshop.loan.bike"].create({"name": "Loan bicycle"})
        values = {"partner_id": partner.id, "bike_id": bike.id}
        first = self.env["workshop.order"].create({**values, "loan_bike_id": loan.id})
        self.assertFalse(loan.available)
        self.assertNotIn(loan, self.env["workshop.loan.bike"].search([("available", "=", True)]))
        with self.assertRaises(ValidationError):
            self.env["workshop.order"].create({**values, "loan_bike_id": loan.id})
        first.state = "returned"
        self.assertTrue(loan.available)
        self.env["workshop.order"].create({**values, "loan_bike_id": loan.id})
