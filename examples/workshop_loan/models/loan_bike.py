from odoo import api, fields, models


class LoanBike(models.Model):
    _name = "workshop.loan.bike"
    _description = "Loan bicycle"
    _order = "name"

    name = fields.Char(required=True)
    order_ids = fields.One2many("workshop.order", "loan_bike_id", string="Loans")
    available = fields.Boolean(compute="_compute_available", search="_search_available")
    active = fields.Boolean(default=True)

    @api.depends("order_ids.state")
    def _compute_available(self):
        for bike in self:
            bike.available = all(order.state == "returned" for order in bike.order_ids)

    def _search_available(self, operator, value):
        if operator != "in":
            return NotImplemented
        return [("order_ids", "not any", [("state", "!=", "returned")])]
