//! Which templates go: those that are no use any more, and the least recently used when they, or all that is in the pool, take too much.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ocore_model::ids::TemplateId;

use crate::{
    api::{Template, TemplateLimits},
    error::Result,
    local::LocalHost,
};

/// One that was used so recently may be about to be used again.
const IN_USE: Duration = Duration::from_mins(10);
/// Of a pool of which less than this part is free, templates go: they can be made again.
const NEARLY_FULL: u64 = 8;

impl LocalHost {
    pub(in crate::local) async fn evict_templates(&self, limits: &TemplateLimits) -> Result<Vec<TemplateId>> {
        self.sweep_workshop().await?;
        let now = Utc::now();
        let mut usable = self.whole_templates().await?;
        usable.retain(|template| template.content.isolation_key.as_ref().is_none_or(|key| limits.keys.contains(key)));
        let mut evicted: Vec<TemplateId> =
            self.template_ids().into_iter().filter(|id| usable.iter().all(|template| template.id != *id)).collect();
        evicted.extend(surplus(&mut usable, limits, now));
        for template in &evicted {
            self.remove_template(*template).await?;
        }
        for template in usable.iter().filter(|template| unused(template, now) > IN_USE) {
            let pool = self.pool.facts().await?;
            if pool.available_bytes >= pool.total_bytes / NEARLY_FULL {
                break;
            }
            self.remove_template(template.id).await?;
            evicted.push(template.id);
        }
        Ok(evicted)
    }
}

/// Takes out those that have to go; the others stay in the order in which they would.
fn surplus(templates: &mut Vec<Template>, limits: &TemplateLimits, now: DateTime<Utc>) -> Vec<TemplateId> {
    templates.sort_by_key(|template| template.used_at);
    let mut bytes: u64 = templates.iter().map(|template| template.bytes).sum();
    let mut surplus = Vec::new();
    templates.retain(|template| {
        let unused = unused(template, now);
        let goes = unused > Duration::from_hours(24) * limits.unused_days || (bytes > limits.bytes && unused > IN_USE);
        if goes {
            bytes -= template.bytes;
            surplus.push(template.id);
        }
        !goes
    });
    surplus
}

fn unused(template: &Template, now: DateTime<Utc>) -> Duration {
    (now - template.used_at).to_std().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ocore_model::names::ModuleName;
    use uuid::Uuid;

    use super::*;
    use crate::api::TemplateContent;

    fn template(number: u128, bytes: u64, unused_hours: i64, now: DateTime<Utc>) -> Template {
        let content = TemplateContent {
            distribution_id: "19.0-1".to_owned(),
            with_demo: false,
            isolation_key: None,
            requested: vec!["base".parse::<ModuleName>().unwrap()],
            environment: None,
            modules: BTreeMap::new(),
        };
        let used_at = now - chrono::Duration::hours(unused_hours);
        Template {
            id: TemplateId(Uuid::from_u128(number)),
            content,
            odoo_version: "19.0".parse().unwrap(),
            postgres: "15".to_owned(),
            shape: 1,
            standard: Vec::new(),
            installed: Vec::new(),
            created_at: used_at,
            used_at,
            bytes,
            entries: 1,
        }
    }

    #[test]
    fn the_least_recently_used_go_first_and_none_that_was_just_used() {
        let now = Utc::now();
        let gone = |bytes| -> Vec<u128> {
            let mut templates =
                vec![template(1, 100, 5, now), template(2, 100, 50, now), template(3, 100, 0, now), template(4, 100, 800, now)];
            let limits = TemplateLimits { bytes, unused_days: 30, keys: Vec::new() };
            let gone = surplus(&mut templates, &limits, now);
            assert_eq!(templates.len() + gone.len(), 4);
            gone.into_iter().map(|id| id.0.as_u128()).collect()
        };
        assert_eq!(gone(1000), [4], "unused for more than thirty days");
        assert_eq!(gone(300), [4]);
        assert_eq!(gone(200), [4, 2]);
        assert_eq!(gone(0), [4, 2, 1], "the last one was just used");
    }
}
