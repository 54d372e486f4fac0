//! Which variables of their environment Odoo's processes get from people.

use ocore_model::odoo_options;

/// Of a value, in bytes.
const VALUE_LIMIT: usize = 8192;

/// Why a variable is not a project's, by its beginning or its whole name: the processes are started by a privileged one.
const LOADER: &str = "it steers how programs of the server load libraries and find hosts, which is not for a project to say";
const SURROUNDINGS: &str = "it belongs to the surroundings of Odoo's processes, which oCore makes";
const PYTHON: &str = "it steers Python itself; packages come with requirements.txt";
const WORDS: &str = "Odoo runs with the same language settings everywhere; the languages of users are set in Odoo";
const PREFIXES: &[(&str, &str)] = &[
    ("LD_", LOADER),
    ("GLIBC_", LOADER),
    ("GCONV_", LOADER),
    ("MALLOC_", LOADER),
    ("RES_", LOADER),
    ("PYTHON", PYTHON),
    ("PG", "it steers the database client, and oCore connects Odoo with its database"),
    ("LC_", WORDS),
    ("OCORE_", "names that begin like this are oCore's own"),
];
const NAMES: &[(&str, &str)] = &[
    ("PATH", SURROUNDINGS),
    ("HOME", SURROUNDINGS),
    ("USER", SURROUNDINGS),
    ("LOGNAME", SURROUNDINGS),
    ("SHELL", SURROUNDINGS),
    ("TMPDIR", SURROUNDINGS),
    ("IFS", SURROUNDINGS),
    ("ENV", SURROUNDINGS),
    ("BASH_ENV", SURROUNDINGS),
    ("LANG", WORDS),
    ("LANGUAGE", WORDS),
    ("LOCPATH", LOADER),
    ("LOCALDOMAIN", LOADER),
    ("HOSTALIASES", LOADER),
    ("NLSPATH", LOADER),
    ("NIS_PATH", LOADER),
    ("GETCONF_DIR", LOADER),
    ("VIRTUAL_ENV", PYTHON),
    ("OPENERP_SERVER", "it names Odoo's configuration file, which oCore writes"),
];

/// A variable is for the repository's modules. What steers the loader, the interpreter or the database client is oCore's. Odoo takes each of its
/// options from a variable, too: those are set where they belong. What only begins like one of Odoo's is a module's.
pub(super) fn check_variable(name: &str, value: &str) -> Result<(), String> {
    let mut characters = name.bytes();
    let valid = characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && characters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.len() <= 100;
    if !valid {
        return Err("a name is letters, digits and underscores, not beginning with a digit, at most 100".to_owned());
    }
    let upper = name.to_ascii_uppercase();
    let by_name = NAMES.iter().find(|(known, _)| *known == upper);
    if let Some((_, reason)) = by_name.or_else(|| PREFIXES.iter().find(|(prefix, _)| upper.starts_with(prefix))) {
        return Err((*reason).to_owned());
    }
    if let Some(option) = upper.strip_prefix("ODOO_").map(str::to_ascii_lowercase) {
        if odoo_options::is_allowed(&option) {
            return Err(format!("this is Odoo's option {option}; set it in the repository, in [odoo] of ocore.toml"));
        }
        if odoo_options::is_option(&option)
            && let Some(reason) = odoo_options::reason(&option)
        {
            return Err(format!("this is Odoo's option {option}: {reason}"));
        }
    }
    if value.contains('\0') || value.len() > VALUE_LIMIT {
        return Err("a value has at most 8192 bytes and no zero byte".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_steer_the_loader_or_the_interpreter_are_refused() {
        for name in ["LD_PRELOAD", "ld_preload", "GLIBC_TUNABLES", "PYTHONPATH", "PATH", "PGHOST", "HOME", "1A", "", "A-B", "A=B", "É"] {
            assert!(check_variable(name, "x").is_err(), "{name}");
        }
        assert!(check_variable("STRIPE_KEY", "sk_test").is_ok());
        assert!(check_variable("A", "a\0b").is_err());
    }

    #[test]
    fn an_option_of_odoo_is_answered_with_where_it_is_set_and_a_modules_own_is_taken() {
        let refused = |name: &str| check_variable(name, "x").unwrap_err();
        assert!(refused("ODOO_SERVER_WIDE_MODULES").contains("in [odoo] of ocore.toml"));
        assert!(refused("ODOO_WORKERS").contains("setting of the instance"));
        assert!(refused("ODOO_RC").contains("which oCore gives"));
        for name in ["ODOO_QUEUE_JOB_CHANNELS", "ODOO_BEACON_CHANNELS", "ODOO_STAGE"] {
            assert_eq!(check_variable(name, "root:2"), Ok(()));
        }
    }
}
