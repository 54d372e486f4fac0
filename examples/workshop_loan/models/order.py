from odoo import api, fields, models
from odoo.exceptions import ValidationError


class Order(models.Model):
    _inherit = "workshop.order"

    loan_bike_id = fields.Many2one("workshop.loan.bike", string="Loan bicycle", copy=False, index=True, domain="[('available', '=', True)]")

    @api.constrains("loan_bike_id", "state")
    def _check_lent_once(self):
        for order in self:
            if order.loan_bike_id and order.state != "returned" and (order.loan_bike_id.order_ids - order).filtered(lambda other: other.state != "returned"):
                raise ValidationError(self.env._("%s is lent to another customer.", order.loan_bike_id.name))
