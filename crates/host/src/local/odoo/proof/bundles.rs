//! Which bundles of styles and scripts a deployment can break: those that the repository's manifests and records say something of, in the shapes in which
//! pages ask for them.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::files::is_bundle;
use crate::{
    error::{HostError, Result},
    local::database::in_time,
};

/// The backend's, which every user needs.
pub(super) const BACKEND: [&str; 2] = ["web.assets_web.min.js", "web.assets_web.min.css"];
/// What the backend's page is made of is named like this by modules.
const OF_BACKEND: [&str; 2] = ["web.assets_backend", "web.assets_web"];
/// More than any Odoo has, in bundles.
const MOST: usize = 100;
/// A version that none has, so that Odoo compares, and builds what is not there.
const NO_VERSION: &str = "/web/assets/0000000/";

/// What the database says of bundles.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Bundles that views call, with whether they want styles and scripts of them.
    called: Vec<(String, bool, bool)>,
    /// Bundles that records of these modules change.
    pub(super) of_records: Vec<String>,
    /// Whether a language from right to left is active.
    pub(super) mirrored: bool,
    /// Websites, which have bundles of their own.
    websites: Vec<i32>,
}

impl Known {
    /// Of a database with Odoo in it. The connection must be the owner's.
    pub(super) async fn read(connection: &mut PgConnection, modules: &[String]) -> Result<Self> {
        let query_error = |error| HostError::machine_from("the bundles could not be read from the database", error);
        let tags: Vec<String> = in_time(
            sqlx::query_scalar(
                "select distinct tag[1] from (select regexp_matches(arch_db::text, '<t [^>]{0,255}t-call-assets=[^>]{0,255}>', 'g') as tag
                 from public.ir_ui_view where active and type = 'qweb' and arch_db::text like '%t-call-assets=%') as calls limit 2000",
            )
            .fetch_all(&mut *connection),
        )
        .await?
        .map_err(query_error)?;
        let of_records = in_time(
            sqlx::query_scalar(
                "select distinct ir_asset.bundle::text from public.ir_asset join public.ir_model_data on model = 'ir.asset' and res_id = ir_asset.id
                 where ir_asset.active and ir_model_data.module = any($1) limit 1000",
            )
            .bind(modules)
            .fetch_all(&mut *connection),
        )
        .await?
        .map_err(query_error)?;
        let mirrored = in_time(
            sqlx::query_scalar("select exists (select from public.res_lang where active and direction = 'rtl')")
                .fetch_one(&mut *connection),
        )
        .await?
        .map_err(query_error)?;
        let has_websites: bool =
            in_time(sqlx::query_scalar("select to_regclass('public.website') is not null").fetch_one(&mut *connection))
                .await?
                .map_err(query_error)?;
        let websites = if has_websites {
            in_time(sqlx::query_scalar("select id from public.website order by id limit 20").fetch_all(&mut *connection))
                .await?
                .map_err(query_error)?
        } else {
            Vec::new()
        };
        Ok(Self { called: tags.iter().filter_map(|tag| call(tag)).collect(), of_records, mirrored, websites })
    }

    /// Addresses of what pages ask for, of all that these bundles may be part of.
    pub(super) fn touched(&self, keys: &[String]) -> Vec<String> {
        let mut files: BTreeSet<String> = BTreeSet::new();
        for key in keys {
            let backend = OF_BACKEND.iter().any(|name| key.starts_with(name));
            let prefix = if backend { "web.assets_web" } else { key };
            let mut called: Vec<_> = self.called.iter().filter(|(name, ..)| name.starts_with(prefix)).collect();
            if called.is_empty() {
                // A part of others, whose names nobody outside of Odoo knows.
                let module = key.split('.').next().unwrap_or_default();
                called = self.called.iter().filter(|(name, ..)| name.split('.').next() == Some(module)).collect();
            }
            for (name, styles, scripts) in called {
                files.extend(styles.then(|| format!("{name}.min.css")));
                files.extend(scripts.then(|| format!("{name}.min.js")));
            }
        }
        let mut addresses: Vec<String> = files.iter().map(|file| format!("{NO_VERSION}{file}")).collect();
        let frontend = files.iter().filter(|file| file.starts_with("web.assets_frontend"));
        addresses
            .extend(frontend.flat_map(|file| self.websites.iter().map(move |website| format!("/web/assets/{website}/0000000/{file}"))));
        if self.mirrored {
            addresses
                .extend(addresses.clone().iter().filter_map(|address| Some(format!("{}.rtl.min.css", address.strip_suffix(".min.css")?))));
        }
        addresses.truncate(MOST);
        addresses
    }
}

/// Whether a change of these bundles shows on pages of the frontend.
pub(super) fn is_frontend(keys: &[String]) -> bool {
    keys.iter().any(|key| !OF_BACKEND.iter().any(|name| key.starts_with(name)))
}

/// The addresses of bundles on a page.
pub(super) fn links(page: &str) -> Vec<String> {
    let is_path = |word: &&str| word.starts_with("/web/assets/") && word.bytes().all(|byte| byte.is_ascii_graphic());
    let mut links: Vec<String> = page.split(['"', '\'']).filter(is_path).map(str::to_owned).collect();
    links.sort();
    links.dedup();
    links.truncate(MOST);
    links
}

/// The bundles that every Odoo's backend is made of, whatever has changed.
pub(super) fn backend() -> Vec<String> {
    BACKEND.iter().map(|file| format!("{NO_VERSION}{file}")).collect()
}

/// A tag that calls a bundle for pages; those of tests no page has.
fn call(tag: &str) -> Option<(String, bool, bool)> {
    // As it stands in a value of JSON.
    let tag = tag.replace("\\\"", "\"");
    let attribute = |name: &str| {
        let rest = tag.split_once(&format!("{name}="))?.1;
        let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        rest[1..].split(quote).next().map(str::to_owned)
    };
    let name = attribute("t-call-assets").filter(|name| is_bundle(name))?;
    let wants = |what: &str| attribute(what).is_none_or(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"));
    let of_tests = name.split(['.', '_']).any(|word| matches!(word, "test" | "tests" | "qunit" | "clickbot"));
    (!of_tests).then(|| (name, wants("t-css"), wants("t-js")))
}

/// What a bundle is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Styles,
    Scripts,
}

/// By its address; `None` for what is no bundle that pages are made of.
pub(super) fn kind(address: &str) -> Option<Kind> {
    match address.rsplit('.').next() {
        Some("css") => Some(Kind::Styles),
        Some("js") => Some(Kind::Scripts),
        _ => None,
    }
}

/// The name of a bundle for people: the last part of its address.
pub(super) fn name(address: &str) -> &str {
    let file = address.rsplit('/').next().unwrap_or(address);
    file.split(".min.").next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let tags = [
            r#"<t t-call-assets=\"web.assets_web\" t-css=\"false\"/>"#,
            r#"<t t-call-assets="web.assets_web" media="screen" t-js="false"/>"#,
            r#"<t t-call-assets="web.assets_frontend" t-js="false"/>"#,
            r#"<t t-call-assets="web.assets_frontend_lazy" t-css="False" lazy_load="True"/>"#,
            r#"<t t-call-assets="web.assets_tests" defer_load="True"/>"#,
            r#"<t t-call-assets="contest.assets_page"/>"#,
            r#"<t t-call-assets="point_of_sale.assets_prod"/>"#,
        ];
        Known { called: tags.iter().filter_map(|tag| call(tag)).collect(), ..Known::default() }
    }

    #[test]
    fn a_bundle_leads_to_all_that_it_may_be_part_of() {
        let touched = |key: &str| {
            known().touched(&[key.to_owned()]).iter().map(|address| address.rsplit_once('/').unwrap().1.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(touched("web.assets_backend"), ["web.assets_web.min.css", "web.assets_web.min.js"]);
        assert_eq!(touched("web.assets_frontend"), ["web.assets_frontend.min.css", "web.assets_frontend_lazy.min.js"]);
        assert_eq!(touched("point_of_sale._assets_pos"), ["point_of_sale.assets_prod.min.css", "point_of_sale.assets_prod.min.js"]);
        assert_eq!(touched("web._assets_helpers").len(), 4);
        assert_eq!(touched("contest.assets_page").len(), 2);
        assert!(touched("web.assets_tests").iter().all(|file| !file.contains("tests")));
    }

    #[test]
    fn websites_and_languages_from_right_to_left_have_bundles_of_their_own() {
        let known = Known { mirrored: true, websites: vec![2], ..known() };
        let touched = known.touched(&["web.assets_frontend".to_owned()]);
        assert!(touched.contains(&"/web/assets/2/0000000/web.assets_frontend.rtl.min.css".to_owned()), "{touched:?}");
    }

    #[test]
    fn links_of_a_page_are_found() {
        let page = r#"<link href="/web/assets/1/abc/web.assets_frontend.min.css"/><script data-src='/web/assets/1/d/web.assets_frontend_lazy.min.js'></script><a href="/web/login">"#;
        assert_eq!(links(page), ["/web/assets/1/abc/web.assets_frontend.min.css", "/web/assets/1/d/web.assets_frontend_lazy.min.js"]);
        assert_eq!(name("/web/assets/1/abc/web.assets_frontend.min.css"), "web.assets_frontend");
        assert!(is_frontend(&["web._assets_helpers".to_owned()]) && !is_frontend(&["web.assets_backend".to_owned()]));
    }
}
