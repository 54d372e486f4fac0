from odoo import api, fields, models


class Bike(models.Model):
    _name = "workshop.bike"
    _description = "Bicycle"
    _order = "partner_id, name"

    name = fields.Char(string="Model", required=True)
    frame_number = fields.Char(copy=False, help="Stamped into the frame, usually below the bottom bracket.")
    kind = fields.Selection(
        [("city", "City"), ("road", "Road"), ("mountain", "Mountain"), ("cargo", "Cargo"), ("electric", "Electric")],
        default="city",
        required=True,
    )
    partner_id = fields.Many2one("res.partner", string="Owner", index=True, ondelete="restrict")
    order_ids = fields.One2many("workshop.order", "bike_id", string="Repairs")
    order_count = fields.Integer(compute="_compute_order_count", string="Number of repairs")
    active = fields.Boolean(default=True)

    _frame_number_unique = models.Constraint("unique(frame_number)", "There is a bicycle with this frame number already.")

    @api.depends("order_ids")
    def _compute_order_count(self):
        for bike in self:
            bike.order_count = len(bike.order_ids)
