from odoo import fields, models


class Service(models.Model):
    _name = "workshop.service"
    _description = "Workshop service"
    _order = "sequence, name"

    name = fields.Char(required=True, translate=True)
    description = fields.Text(translate=True)
    sequence = fields.Integer(default=10)
    company_id = fields.Many2one("res.company", default=lambda self: self.env.company, required=True)
    currency_id = fields.Many2one(related="company_id.currency_id")
    price = fields.Monetary(required=True)
    published = fields.Boolean(string="On the public page", default=True)
    active = fields.Boolean(default=True)

    _price_positive = models.Constraint("check(price >= 0)", "A price cannot be negative.")
