//! The environment variables of instances. They often are secrets: sealed wherever they lie (the instance's row, the parameters of an operation), and
//! opened for the one call that needs them. Their names are sealed with them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ocore_host::OdooSettings;
use ocore_model::ids::InstanceId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Control, Error, Result, Settings,
    authorization::System,
    secrets::{self, Place, Secret},
    store,
};

/// What stands for a value that the caller may not see.
pub const MASK: &str = "***";

fn place(instance: InstanceId) -> Place {
    Place { table: "instances", column: "env_vars", row: instance.as_uuid() }
}

/// The variables for the column; `None` when there are none.
pub(crate) fn seal(settings: &Settings, instance: InstanceId, variables: &BTreeMap<String, String>) -> Result<Option<Vec<u8>>> {
    if variables.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_vec(variables).map_err(|error| Error::internal("writing an instance's variables", error))?;
    secrets::seal(settings, place(instance), &Secret::new(text)).map(Some)
}

/// Puts the sealed variables into an instance's settings. A row that was written before variables were sealed has them there in the clear; they stay.
pub(crate) fn open(settings: &Settings, instance: InstanceId, odoo: &mut OdooSettings, sealed: Option<&[u8]>) -> Result<()> {
    if let (true, Some(sealed)) = (odoo.env_vars.is_empty(), sealed) {
        let text = secrets::open(settings, place(instance), sealed)?;
        odoo.env_vars = serde_json::from_slice(text.expose()).map_err(|error| Error::internal("reading an instance's variables", error))?;
    }
    Ok(())
}

/// An instance's settings for the parameters of an operation, which lie in the store until it ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SealedSettings(Value);

/// The member in which the sealed variables are, in base64, beside the settings that everybody may read.
const SEALED: &str = "sealedEnvVars";

impl SealedSettings {
    /// From a row of the store.
    pub(crate) fn new(settings: &Settings, instance: InstanceId, mut odoo: Value, sealed: Option<Vec<u8>>) -> Result<Self> {
        let read: OdooSettings = parse(&odoo)?;
        let sealed = if read.env_vars.is_empty() { sealed } else { seal(settings, instance, &read.env_vars)? };
        if let Some(members) = odoo.as_object_mut() {
            members.remove("envVars");
            members.extend(sealed.map(|sealed| (SEALED.to_owned(), Value::String(BASE64.encode(sealed)))));
        }
        Ok(Self(odoo))
    }

    /// For a call to the server.
    pub(crate) fn open(&self, control: &Control, instance: InstanceId) -> Result<OdooSettings> {
        let mut odoo = parse(&self.0)?;
        let sealed = self.0.get(SEALED).and_then(Value::as_str).map(|text| BASE64.decode(text)).transpose();
        let sealed = sealed.map_err(|error| Error::internal("reading an operation's variables", error))?;
        open(&control.settings, instance, &mut odoo, sealed.as_deref())?;
        Ok(odoo)
    }
}

fn parse(odoo: &Value) -> Result<OdooSettings> {
    OdooSettings::deserialize(odoo).map_err(|error| Error::internal("reading an instance's settings", error))
}

/// Seals what lies in the clear in rows of a version before this one, and says in how many. At every start; the second finds nothing.
pub async fn seal_all(_system: System, control: &Control) -> Result<u64> {
    let mut sealed = 0;
    loop {
        let mut transaction = control.pool.begin().await?;
        let Some((instance, odoo)) = store::instances::lock_unsealed(&mut transaction).await? else { return Ok(sealed) };
        let variables = seal(&control.settings, instance, &odoo.env_vars)?;
        store::instances::set_settings(&mut transaction, instance, &odoo, variables.as_deref()).await?;
        transaction.commit().await?;
        sealed += 1;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::context::tests::settings;

    #[test]
    fn an_operation_keeps_no_variable_in_the_clear_and_opens_them_for_its_instance_only() {
        let (settings, instance) = (settings(), InstanceId::new());
        let variables = BTreeMap::from([("STRIPE_KEY".to_owned(), "sk_live_1".to_owned())]);
        let sealed = seal(&settings, instance, &variables).unwrap();
        // As a row of this version has them, and one of the version before.
        let rows = [(json!({ "workers": 2 }), sealed.clone()), (json!({ "workers": 2, "envVars": variables }), None)];
        for (row, sealed) in rows {
            let kept = SealedSettings::new(&settings, instance, row, sealed).unwrap();
            let text = serde_json::to_string(&kept).unwrap();
            assert!(!text.contains("sk_live") && !text.contains("STRIPE"), "{text}");
            let sealed = BASE64.decode(kept.0[SEALED].as_str().unwrap()).unwrap();
            let mut odoo = OdooSettings::default();
            open(&settings, instance, &mut odoo, Some(&sealed)).unwrap();
            assert_eq!(odoo.env_vars, variables);
            assert!(open(&settings, InstanceId::new(), &mut OdooSettings::default(), Some(&sealed)).is_err());
        }
        assert_eq!(seal(&settings, instance, &BTreeMap::new()).unwrap(), None);
    }
}
