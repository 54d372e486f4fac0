//! Odoo's administrator, who asks and changes as any program does.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{journey::json_rpc, scene::Scene};

/// Odoo's administrator of one environment.
pub struct Admin<'a> {
    pub scene: &'a Scene,
    pub environment: Value,
    user: Value,
    password: Value,
}

impl<'a> Admin<'a> {
    pub async fn of(scene: &'a Scene, branch: &str) -> Result<Self> {
        let environment = scene.environment(branch).await?;
        let path = format!("/instances/{}/credentials", environment["instanceId"].as_str().unwrap_or_default());
        let credentials = scene.owner.get(&path).await?;
        let password = credentials["password"].clone();
        let user = json_rpc(scene, &environment, "common", "login", json!(["odoo", credentials["login"], password])).await?;
        ensure!(user.as_i64().is_some_and(|id| id > 0), "the password that oCore knows is not the one of {branch}'s Odoo: {user}");
        Ok(Self { scene, environment, user, password })
    }

    /// The same user with something else for a password.
    pub fn with_password(&self, password: Value) -> Self {
        Self { scene: self.scene, environment: self.environment.clone(), user: self.user.clone(), password }
    }

    pub async fn call(&self, model: &str, method: &str, arguments: Value) -> Result<Value> {
        self.call_with(model, method, arguments, json!({})).await
    }

    /// With arguments that have names, `context` among them.
    pub async fn call_with(&self, model: &str, method: &str, arguments: Value, named: Value) -> Result<Value> {
        let arguments = json!(["odoo", self.user, self.password, model, method, arguments, named]);
        json_rpc(self.scene, &self.environment, "object", "execute_kw", arguments).await
    }

    /// The values of one field of all records that match.
    pub async fn values(&self, model: &str, domain: Value, field: &str) -> Result<Vec<Value>> {
        let rows = self.call(model, "search_read", json!([domain, [field]])).await?;
        Ok(rows.as_array().into_iter().flatten().map(|row| row[field].clone()).collect())
    }

    pub async fn parameter(&self, key: &str) -> Result<Value> {
        self.call("ir.config_parameter", "get_param", json!([key])).await
    }
}
