from odoo import http
from odoo.http import request


class WorkshopPages(http.Controller):
    """What customers see without logging in."""

    @http.route("/workshop", type="http", auth="public", methods=["GET"], readonly=True)
    def services(self):
        services = request.env["workshop.service"].sudo().search([("published", "=", True)])
        return request.render("workshop.page_services", {"services": services, "company": request.env.company.sudo()})

    @http.route("/workshop/order/<string:token>", type="http", auth="public", methods=["GET"], readonly=True)
    def order(self, token):
        order = request.env["workshop.order"].sudo().search([("access_token", "=", token)], limit=1)
        if not order:
            raise request.not_found()
        return request.render("workshop.page_order", {"order": order, "company": order.company_id})
