//! Personal data behind other data: optional, by the rules of the project's `ocore.toml`.
//!
//! ```toml
//! [masking]
//! enabled = true
//! defaults = true                     # the rules of masking.toml, for what every Odoo has
//! rules = [
//!     { table = "clinic_patient", column = "name", how = "fake_name" },
//!     { table = "clinic_patient", column = "diagnosis", how = "constant", value = "…" },
//! ]
//! ```
//!
//! The same value becomes the same other value in every column and every copy on this server. The key that this takes never leaves the server,
//! so that nobody finds a telephone number again by trying all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use super::{catalog::quote, run_sql::lost};
use crate::{
    error::{HostError, Result},
    local::durable::{self, blocking},
};

const DEFAULTS: &str = include_str!("masking.toml");

/// How a value is replaced. What is empty stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum How {
    /// By nothing.
    Null,
    /// By 32 hexadecimal digits.
    Hash,
    FakeName,
    FakeEmail,
    FakePhone,
    FakeStreet,
    /// By `value`.
    Constant,
}

/// A rule of a project.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectRule {
    table: String,
    column: String,
    how: How,
    value: Option<String>,
}

/// The section `[masking]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    enabled: bool,
    defaults: bool,
    rules: Vec<ProjectRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    table: Vec<DefaultTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultTable {
    name: String,
    r#where: Option<String>,
    columns: Vec<DefaultColumn>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultColumn {
    name: String,
    how: How,
    value: Option<String>,
    /// The column whose value is masked, when it is another one.
    from: Option<String>,
}

/// One column to mask.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mask {
    column: String,
    how: How,
    value: Option<String>,
    from: String,
    /// It must be there: the project names it.
    is_demanded: bool,
}

/// The columns of one table that are masked in the same rows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TableMasks {
    table: String,
    rows: Option<String>,
    masks: Vec<Mask>,
}

/// What is masked in a copy; nothing unless the project wants it.
#[derive(Debug, Default)]
pub(super) struct Masking {
    tables: Vec<TableMasks>,
}

/// Of a column in the database.
struct Shape {
    kind: String,
    is_required: bool,
}

impl Masking {
    /// As the project's `ocore.toml` wants it.
    pub(super) fn of_project(section: Section) -> Result<Self> {
        if !section.enabled {
            return Ok(Self::default());
        }
        let mut tables = Vec::new();
        // The project's own come first: what they have masked, a default rule must not mask again.
        let mut own: BTreeMap<String, Vec<Mask>> = BTreeMap::new();
        for rule in section.rules {
            if (rule.how == How::Constant) != rule.value.is_some() {
                return Err(HostError::rejected(format!(
                    "the masking rule for {}.{} in ocore.toml: `value` belongs to `how = \"constant\"`, and to no other",
                    rule.table, rule.column
                )));
            }
            own.entry(rule.table).or_default().push(Mask {
                from: rule.column.clone(),
                column: rule.column,
                how: rule.how,
                value: rule.value,
                is_demanded: true,
            });
        }
        let taken: BTreeSet<(String, String)> =
            own.iter().flat_map(|(table, masks)| masks.iter().map(|mask| (table.clone(), mask.column.clone()))).collect();
        if section.defaults {
            let defaults: Defaults =
                toml::from_str(DEFAULTS).map_err(|error| HostError::machine_from("the default rules for masking are damaged", error))?;
            tables.extend(defaults.table.into_iter().map(|table| {
                TableMasks {
                    masks: table
                        .columns
                        .into_iter()
                        .filter(|column| !taken.contains(&(table.name.clone(), column.name.clone())))
                        .map(|column| Mask {
                            from: column.from.unwrap_or_else(|| column.name.clone()),
                            column: column.name,
                            how: column.how,
                            value: column.value,
                            is_demanded: false,
                        })
                        .collect(),
                    table: table.name,
                    rows: table.r#where,
                }
            }));
        }
        tables.extend(own.into_iter().map(|(table, masks)| TableMasks { table, rows: None, masks }));
        Ok(Self { tables })
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Masks everything in one transaction; answers with `table.column` of what was masked. Twice changes fakes into other fakes.
    pub(super) async fn apply(&self, connection: &mut PgConnection, key: &str) -> Result<BTreeSet<String>> {
        let mut transaction = connection.begin().await.map_err(lost)?;
        sqlx::query("select set_config('ocore.masking_key', $1, true)").bind(key).execute(&mut *transaction).await.map_err(lost)?;
        sqlx::raw_sql(FUNCTIONS).execute(&mut *transaction).await.map_err(lost)?;
        let mut masked = BTreeSet::new();
        for table in &self.tables {
            let shapes = shapes(&mut transaction, &table.table).await?;
            let mut set = Vec::new();
            for mask in &table.masks {
                let place = format!("{}.{}", table.table, mask.column);
                match shapes.get(&mask.column) {
                    Some(shape) if mask.is_demanded || shapes.contains_key(&mask.from) => {
                        set.push(mask.assignment(&place, shape)?);
                        masked.insert(place);
                    }
                    None if mask.is_demanded => {
                        return Err(HostError::rejected(format!(
                            "ocore.toml masks {place}, which the database does not have; correct the rule"
                        )));
                    }
                    _ => {}
                }
            }
            if set.is_empty() {
                continue;
            }
            let rows = table.rows.as_ref().map(|rows| format!(" where {rows}")).unwrap_or_default();
            let update = format!("update public.{} set {}{rows}", quote(&table.table), set.join(", "));
            sqlx::query(AssertSqlSafe(update)).execute(&mut *transaction).await.map_err(|error| match error.as_database_error() {
                Some(database) => HostError::rejected(format!("{} could not be masked: {}", table.table, database.message())),
                None => lost(error),
            })?;
        }
        transaction.commit().await.map_err(lost)?;
        Ok(masked)
    }
}

impl Mask {
    /// `column = …`, in the type that the column has.
    fn assignment(&self, place: &str, shape: &Shape) -> Result<String> {
        let (column, from) = (quote(&self.column), quote(&self.from));
        let is_text = matches!(shape.kind.as_str(), "text" | "varchar" | "bpchar" | "citext");
        let of = |function: &str| format!("{column} = pg_temp.ocore_{function}({from}::text)");
        match self.how {
            How::Null if shape.is_required => Err(HostError::rejected(format!(
                "{place} must have a value, so it cannot be masked by null; choose another way in ocore.toml"
            ))),
            How::Null => Ok(format!("{column} = null")),
            How::Constant if is_text || !shape.kind.starts_with("json") => {
                let value = self.value.as_deref().unwrap_or_default().replace('\'', "''");
                Ok(format!("{column} = case when {column} is null then null else '{value}'::{} end", quote(&shape.kind)))
            }
            _ if !is_text => Err(HostError::rejected(format!("{place} is of the type {}, which can only be masked by null", shape.kind))),
            How::Hash | How::Constant => Ok(of("hash")),
            How::FakeName => Ok(of("name")),
            How::FakeEmail => Ok(of("email")),
            How::FakePhone => Ok(of("phone")),
            How::FakeStreet => Ok(of("street")),
        }
    }
}

async fn shapes(connection: &mut PgConnection, table: &str) -> Result<BTreeMap<String, Shape>> {
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "select a.attname::text, t.typname::text, a.attnotnull from pg_attribute a join pg_type t on t.oid = a.atttypid
          where a.attrelid = to_regclass('public.' || quote_ident($1)) and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''",
    )
    .bind(table)
    .fetch_all(connection)
    .await
    .map_err(lost)?;
    Ok(rows.into_iter().map(|(name, kind, is_required)| (name, Shape { kind, is_required })).collect())
}

/// Each is a function of the value and the key alone.
const FUNCTIONS: &str = "
create function pg_temp.ocore_hash(value text) returns text language sql stable strict as $$
    select case when value = '' then '' else
        left(encode(sha256(convert_to(current_setting('ocore.masking_key') || ':' || lower(trim(value)), 'UTF8')), 'hex'), 32) end
$$;
create function pg_temp.ocore_number(value text, part integer) returns integer language sql stable strict as $$
    select ('x' || substr(pg_temp.ocore_hash(value), 1 + 7 * part, 7))::bit(28)::integer
$$;
create function pg_temp.ocore_name(value text) returns text language sql stable strict as $$
    select case when value = '' then '' else
        (array['Ada','Alma','Anton','Aria','Boris','Carla','Dario','Edda','Elio','Emil','Fanny','Felix','Greta','Hanna','Hugo','Ida',
               'Ines','Ivo','Jana','Jonas','Kira','Lars','Lena','Luca','Mara','Milo','Nora','Oskar','Paula','Rosa','Theo','Vera'])
            [1 + pg_temp.ocore_number(value, 0) % 32] || ' ' ||
        (array['Acker','Baum','Berger','Brook','Dahl','Ebner','Falk','Fields','Garner','Hale','Harper','Holm','Jansen','Keller','Lang','Lind',
               'Marsh','Meyer','Moss','Noble','Olsen','Parker','Quist','Reed','Rivers','Sander','Stone','Thorn','Vogel','Walker','West','Young'])
            [1 + pg_temp.ocore_number(value, 1) % 32] || ' ' || (pg_temp.ocore_number(value, 2) % 1000)::text end
$$;
create function pg_temp.ocore_email(value text) returns text language sql stable strict as $$
    select case when value = '' then '' else
        'user-' || left(pg_temp.ocore_hash(coalesce(substring(value from '[^<> ]+@[^<> ]+'), value)), 12) || '@example.com' end
$$;
create function pg_temp.ocore_phone(value text) returns text language sql stable strict as $$
    select case when value = '' then '' else '+1 555 ' || lpad((pg_temp.ocore_number(value, 0) % 10000000)::text, 7, '0') end
$$;
create function pg_temp.ocore_street(value text) returns text language sql stable strict as $$
    select case when value = '' then '' else (1 + pg_temp.ocore_number(value, 0) % 200)::text || ' Example Street' end
$$;
";

/// The server's key, made at the first use.
pub(super) async fn key(state: &Path) -> Result<String> {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let path = state.join("masking.key");
    blocking(move || {
        let kept = durable::read_json::<String>(&path)?;
        if let Some(key) = kept {
            return Ok(key);
        }
        let key = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        durable::write_json(&path, &key)?;
        Ok(key)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::{super::settings::ProjectSettings, *};

    fn masking(text: &str) -> Result<Masking> {
        Masking::of_project(ProjectSettings::read(Some(text))?.masking)
    }

    #[test]
    fn nothing_is_masked_unless_the_project_wants_it() {
        assert!(!Masking::of_project(Section::default()).unwrap().is_wanted());
        assert!(!masking("[other]\nx = 1").unwrap().is_wanted());
        assert!(!masking("[masking]\ndefaults = true").unwrap().is_wanted());
        assert!(masking("[masking]\nenabled = true\ndefaults = true").unwrap().is_wanted());
    }

    #[test]
    fn a_rule_of_the_project_replaces_the_default_one() {
        let text = "[masking]\nenabled = true\ndefaults = true\nrules = [{ table = \"res_partner\", column = \"email\", how = \"hash\" }]";
        let masking = masking(text).unwrap();
        let emails: Vec<How> = masking
            .tables
            .iter()
            .filter(|table| table.table == "res_partner")
            .flat_map(|table| &table.masks)
            .filter(|mask| mask.column == "email")
            .map(|mask| mask.how)
            .collect();
        assert_eq!(emails, vec![How::Hash]);
    }

    #[test]
    fn a_wrong_rule_is_named() {
        for (rule, expected) in [
            ("{ table = \"t\", column = \"c\", how = \"shuffle\" }", "unknown variant `shuffle`"),
            ("{ table = \"t\", column = \"c\", how = \"constant\" }", "masking rule for t.c"),
            ("{ table = \"t\", column = \"c\", how = \"null\", value = \"x\" }", "masking rule for t.c"),
            ("{ table = \"t\", how = \"null\" }", "missing field `column`"),
        ] {
            let error = masking(&format!("[masking]\nenabled = true\nrules = [{rule}]")).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("ocore.toml"), "{error}");
        }
    }
}
