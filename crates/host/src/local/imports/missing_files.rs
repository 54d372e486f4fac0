//! Rows of a restored database that name files which its file store does not have.
//!
//! Odoo finds the bundles that it has built by their rows alone and answers 500 when the file of one is gone (`ir.attachment`, `_to_http_stream`), so that
//! no page has styles any more. It builds a bundle again whose row is not there. All other rows stay: they say what is missing.

use std::{
    collections::BTreeSet,
    io,
    path::{Component, Path, PathBuf},
};

use rustix::fs::FileType;
use sqlx::PgConnection;

use super::restore::cannot_read_rows;
use crate::{
    error::{HostError, Result},
    local::{below::Directory, data_sets::ODOO_ROLE, durable::blocking},
};

/// Rows that are looked at together.
const ROWS: i32 = 10_000;
const EXAMPLES: usize = 5;

/// What was found, in rows.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// Bundles, whose rows are gone now.
    pub(super) bundles: u64,
    /// Others, which stay.
    pub(super) attachments: u64,
    examples: Vec<String>,
}

impl Missing {
    /// What a person has to know; nothing when all is there.
    pub(super) fn tell(&self) -> Option<String> {
        let bundles = format!("{} bundles of styles and scripts, which Odoo builds again", self.bundles);
        let attachments = format!(
            "{} attachments, which cannot be opened until their files are there: {}{}",
            self.attachments,
            self.examples.join(", "),
            if self.attachments > self.examples.len() as u64 { " …" } else { "" }
        );
        let said = match (self.bundles, self.attachments) {
            (0, 0) => return None,
            (_, 0) => bundles,
            (0, _) => attachments,
            _ => format!("{bundles}, and {attachments}"),
        };
        Some(format!("The database names files that are not in the file store, or not whole: {said}"))
    }
}

struct Row {
    id: i32,
    place: String,
    is_bundle: bool,
    name: String,
}

/// Looks at every row, over a connection of the owner, and removes those of bundles whose file is absent or `damaged`. May run again.
pub(super) async fn look(connection: &mut PgConnection, data_dir: &Path, damaged: &BTreeSet<String>) -> Result<Missing> {
    let is_there =
        "select pg_catalog.count(*) = 5 from pg_catalog.pg_attribute where attrelid = pg_catalog.to_regclass('public.ir_attachment')
        and attname in ('id', 'store_fname', 'url', 'res_model', 'name')";
    let mut missing = Missing::default();
    if !sqlx::query_scalar::<_, bool>(is_there).fetch_one(&mut *connection).await.map_err(cannot_read_rows)? {
        return Ok(missing);
    }
    let mut last = i32::MIN;
    loop {
        let rows = rows_after(connection, last).await?;
        let Some(next) = rows.last().map(|row| row.id) else { return Ok(missing) };
        if next <= last {
            return Err(HostError::rejected("the restored database is not Odoo's: its attachments are in no order"));
        }
        last = next;
        let (place, damaged) = (data_dir.to_owned(), damaged.clone());
        let absent = blocking(move || absent(&place, rows, &damaged)).await?;
        let (bundles, attachments): (Vec<Row>, Vec<Row>) = absent.into_iter().partition(|row| row.is_bundle);
        missing.attachments += attachments.len() as u64;
        let room = EXAMPLES - missing.examples.len();
        missing.examples.extend(attachments.iter().take(room).map(|row| format!("{} ({})", row.name.escape_debug(), row.id)));
        let bundles: Vec<i32> = bundles.iter().map(|row| row.id).collect();
        if !bundles.is_empty() {
            let removed = sqlx::query("delete from public.ir_attachment where id = any($1)").bind(&bundles).execute(&mut *connection);
            missing.bundles += removed.await.map_err(cannot_read_rows)?.rows_affected();
        }
    }
}

/// A view in the place of the table may have any rows of any length.
async fn rows_after(connection: &mut PgConnection, last: i32) -> Result<Vec<Row>> {
    let query = "select id::pg_catalog.int4, pg_catalog.left(store_fname::pg_catalog.text, 200),
        coalesce(url::pg_catalog.text like '/web/assets/%' and res_model::pg_catalog.text = 'ir.ui.view', false),
        pg_catalog.left(coalesce(name::pg_catalog.text, ''), 80)
        from public.ir_attachment where store_fname is not null and id > $1 order by id limit $2";
    let rows = sqlx::query_as(query).bind(last).bind(ROWS).fetch_all(connection).await.map_err(cannot_read_rows)?;
    Ok(rows.into_iter().map(|(id, place, is_bundle, name)| Row { id, place, is_bundle, name }).collect())
}

fn absent(data_dir: &Path, rows: Vec<Row>, damaged: &BTreeSet<String>) -> Result<Vec<Row>> {
    let store = match Directory::open(data_dir).and_then(|directory| directory.inside(PathBuf::from("filestore").join(ODOO_ROLE))) {
        Ok(store) => store,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(rows),
        Err(error) => return Err(HostError::machine_from("the new file store could not be opened", error)),
    };
    let is_absent = |row: &Row| {
        let is_plain = Path::new(&row.place).components().all(|part| matches!(part, Component::Normal(_)));
        let found = || store.status(&row.place).ok().flatten().is_some_and(|status| FileType::from_raw_mode(status.st_mode).is_file());
        !is_plain || row.place.is_empty() || damaged.contains(&row.place) || !found()
    };
    Ok(rows.into_iter().filter(is_absent).collect())
}
