//! Linux without Odoo: what this machine's kernel offers, as oCore uses it. Knows nothing of instances, tenants or Odoo.

pub mod ports;
