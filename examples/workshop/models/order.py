import uuid

from odoo import api, fields, models
from odoo.exceptions import UserError


class Order(models.Model):
    _name = "workshop.order"
    _description = "Repair order"
    _order = "date desc, id desc"

    name = fields.Char(string="Number", required=True, readonly=True, copy=False, default="New")
    partner_id = fields.Many2one("res.partner", string="Customer", required=True, index=True)
    bike_id = fields.Many2one("workshop.bike", string="Bicycle", required=True, index=True, domain="[('partner_id', 'in', [partner_id, False])]")
    date = fields.Date(default=fields.Date.context_today, required=True)
    promised_date = fields.Date(string="Promised for")
    problem = fields.Text(string="What is wrong")
    state = fields.Selection(
        [("received", "Received"), ("in_repair", "In repair"), ("ready", "Ready"), ("returned", "Returned")],
        default="received",
        required=True,
        copy=False,
    )
    line_ids = fields.One2many("workshop.order.line", "order_id", string="Services", copy=True)
    company_id = fields.Many2one("res.company", default=lambda self: self.env.company, required=True)
    currency_id = fields.Many2one(related="company_id.currency_id")
    total = fields.Monetary(compute="_compute_total", store=True)
    access_token = fields.Char(readonly=True, copy=False, index=True, default=lambda self: uuid.uuid4().hex)

    @api.depends("line_ids.subtotal")
    def _compute_total(self):
        for order in self:
            order.total = sum(order.line_ids.mapped("subtotal"))

    @api.model_create_multi
    def create(self, vals_list):
        for vals in vals_list:
            if vals.get("name", "New") == "New":
                vals["name"] = self.env["ir.sequence"].next_by_code("workshop.order") or "New"
        return super().create(vals_list)

    def action_start(self):
        self._move("received", "in_repair")

    def action_finish(self):
        for order in self:
            if not order.line_ids:
                raise UserError(self.env._("Say what was done before the repair is ready: %s has no services.", order.name))
        self._move("in_repair", "ready")

    def action_return(self):
        self._move("ready", "returned")

    def _move(self, before, after):
        states = dict(self._fields["state"]._description_selection(self.env))
        for order in self:
            if order.state != before:
                raise UserError(self.env._("%(order)s is not in the state “%(state)s”.", order=order.name, state=states[before]))
            order.state = after


class OrderLine(models.Model):
    _name = "workshop.order.line"
    _description = "Service of a repair order"

    order_id = fields.Many2one("workshop.order", required=True, ondelete="cascade", index=True)
    service_id = fields.Many2one("workshop.service", required=True, ondelete="restrict")
    quantity = fields.Float(default=1.0, required=True)
    currency_id = fields.Many2one(related="order_id.currency_id")
    price = fields.Monetary(compute="_compute_price", store=True, readonly=False, precompute=True, required=True)
    subtotal = fields.Monetary(compute="_compute_subtotal", store=True)

    @api.depends("service_id")
    def _compute_price(self):
        for line in self:
            line.price = line.service_id.price

    @api.depends("quantity", "price")
    def _compute_subtotal(self):
        for line in self:
            line.subtotal = line.quantity * line.price
