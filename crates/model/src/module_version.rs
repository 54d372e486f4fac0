//! Odoo's own rules for the version in a module's manifest (`adapt_version` and `check_version` in `odoo/modules/module.py`). A module whose version
//! breaks them is left out by Odoo, or makes it fail, when it is late to say so.

use crate::names::OdooVersion;

/// Says what is wrong with a version, as the end of a sentence that names the module.
pub fn check(version: &str, odoo: &OdooVersion) -> Result<(), String> {
    let series = odoo.as_str();
    let wrong = |what: String| Err(format!("`{version}` in its manifest, {what}; write {series}.x.y, for example {series}.1.0"));
    let major: u32 = series.rsplit('~').next().and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or_default();
    match major {
        19.. => since_19(version, series).or_else(wrong),
        17..=18 => since_17(version, series).or_else(wrong),
        _ => Ok(()),
    }
}

fn since_19(version: &str, series: &str) -> Result<(), String> {
    let mut parts: Vec<String> = version.split('.').map(str::to_owned).collect();
    if !(2..=5).contains(&parts.len()) {
        return Err(format!("which has {} instead of two to five", count(parts.len())));
    }
    if version.starts_with(series) && !is_number(&parts[0]) {
        parts[0].retain(|letter| letter.is_ascii_digit());
    }
    if !parts.iter().all(|part| is_number(part)) {
        return Err("which is not made of numbers".to_owned());
    }
    if version.starts_with(&format!("{series}.")) || (parts.len() <= 3 && !version.starts_with(series)) {
        return Ok(());
    }
    Err(if version == series { "which is the series alone and too short".to_owned() } else { format!("which is not one of Odoo {series}") })
}

fn since_17(version: &str, series: &str) -> Result<(), String> {
    let own = version.strip_prefix(&format!("{series}.")).unwrap_or(version);
    let parts: Vec<&str> = own.split('.').collect();
    if !parts.iter().all(|part| is_number(part)) {
        return Err("which is not made of numbers".to_owned());
    }
    if (2..=3).contains(&parts.len()) { Ok(()) } else { Err(format!("which is not one of Odoo {series}")) }
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

fn count(parts: usize) -> String {
    if parts == 1 { "one part".to_owned() } else { format!("{parts} parts") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(version: &str, odoo: &str) -> bool {
        let answer = check(version, &odoo.parse().unwrap());
        if let Err(reason) = &answer {
            assert!(reason.contains(version) && reason.contains(&format!("{odoo}.x.y")), "{reason}");
        }
        answer.is_ok()
    }

    #[test]
    fn odoo_19_wants_its_series_or_a_short_version_without_one() {
        for version in ["19.0.1", "19.0.1.0", "19.0.1.0.0", "1.0", "1.0.0", "0.1", "19.5"] {
            assert!(takes(version, "19.0"), "{version}");
        }
        for version in ["19.0", "18.0.1.0.0", "1.0.0.0.0", "1", "19.0.1.0.0.0.0", "1.0.0.0", "1.0rc1", "", "19.01", "saas~19.1.1.0"] {
            assert!(!takes(version, "19.0"), "{version}");
        }
    }

    #[test]
    fn odoo_17_counts_the_parts_after_its_series() {
        for version in ["17.0.1.0.0", "17.0.1.0", "17.0", "1.0", "1.0.0"] {
            assert!(takes(version, "17.0"), "{version}");
        }
        for version in ["16.0.1.0.0", "17.0.1", "1", "1.0.0.0", "1.0b"] {
            assert!(!takes(version, "17.0"), "{version}");
        }
        assert!(takes("16.0.1.0.0", "15.0"));
    }
}
