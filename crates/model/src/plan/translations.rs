//! Translations (`i18n/fr.po`): which of their words are in the database, and which of those a file corrects.
//!
//! The rule: Odoo adds words that the database does not have and keeps those that it has. A word that a file had set and now says otherwise is
//! corrected in the database, where it still is what the file had set. What somebody has translated in Odoo stays.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Change, Content, Database, ModuleDescription, TranslationFile, Way};

/// A word in the database that a file has set and says otherwise now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correction {
    /// The file's name without its ending: `fr`, `fr_BE`. It counts for all languages that begin like this.
    pub language: String,
    /// `ir.ui.view`
    pub model: String,
    /// `arch_db`
    pub field: String,
    /// With its module: `shop.page`.
    pub record: String,
    /// The term in English, of a field that is translated term by term.
    pub term: Option<String>,
    /// What the file had said.
    pub before: String,
}

/// What a file means to a database.
#[derive(Default)]
struct Difference {
    corrected: Vec<Correction>,
    added: usize,
    removed: usize,
}

/// The words that the newer state corrects in the languages of the database.
pub fn corrections(old: &ModuleDescription, new: &ModuleDescription, database: &Database) -> Vec<Correction> {
    files(old, new)
        .into_iter()
        .filter(|(path, _)| database.speaks(language(path)))
        .flat_map(|(path, states)| differ(path, states).corrected)
        .collect()
}

pub(super) fn compare(module: &str, old: &ModuleDescription, new: &ModuleDescription, database: &Database, changes: &mut Vec<Change>) {
    for (path, states) in files(old, new) {
        let has_changed = old.files.get(path).map(|file| &file.digest) != new.files.get(path).map(|file| &file.digest);
        let difference = differ(path, states);
        let mut say = |way: Way, text: String| changes.push(Change::new(module, way, (Some(path), None), text));
        let Difference { corrected, added, removed } = difference;
        let is_same = corrected.is_empty() && added == 0 && removed == 0;
        if is_same && !has_changed {
            continue;
        }
        if !database.speaks(language(path)) {
            say(Way::Nothing, format!("a translation into {}, which is no active language of the database", language(path)));
            continue;
        }
        if !corrected.is_empty() {
            say(
                Way::Update,
                format!(
                    "{} in the database; what somebody has translated otherwise in Odoo stays",
                    count(corrected.len(), "is corrected", "are corrected")
                ),
            );
        }
        if added > 0 {
            say(Way::Update, format!("{}; the database gets those that it does not have", count(added, "is new", "are new")));
        }
        if corrected.is_empty() && added == 0 {
            if states.iter().flatten().map(|file| &file.code).collect::<BTreeSet<_>>().len() > 1 || states[1].is_none() {
                say(Way::Reload, "words of the code, which Odoo reads when it starts".to_owned());
            } else if removed > 0 {
                say(Way::Nothing, format!("{}; what is in the database stays", count(removed, "is gone", "are gone")));
            } else {
                say(Way::Nothing, "a translation that says the same".to_owned());
            }
        }
    }
}

fn count(words: usize, one: &str, more: &str) -> String {
    if words == 1 { format!("1 translated word or sentence {one}") } else { format!("{words} translated words or sentences {more}") }
}

/// The translations of both states by path.
fn files<'a>(old: &'a ModuleDescription, new: &'a ModuleDescription) -> BTreeMap<&'a str, [Option<&'a TranslationFile>; 2]> {
    let mut files: BTreeMap<&str, [Option<&TranslationFile>; 2]> = BTreeMap::new();
    for (place, description) in [old, new].into_iter().enumerate() {
        for (path, file) in &description.files {
            if let Content::Translations(translations) = &file.content {
                files.entry(path).or_default()[place] = Some(translations);
            }
        }
    }
    files
}

fn language(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".po").unwrap_or(file)
}

fn differ(path: &str, [old, new]: [Option<&TranslationFile>; 2]) -> Difference {
    let none = BTreeMap::new();
    let words = |file: Option<&'_ TranslationFile>| file.map_or(none.clone(), |file| file.words.clone());
    let (old, new) = (words(old), words(new));
    let mut difference = Difference::default();
    for (key, now) in &new {
        match old.get(key) {
            None => difference.added += 1,
            Some(before) if before == now => {}
            Some(before) => match correction(language(path), key, before) {
                Some(correction) => difference.corrected.push(correction),
                None => difference.added += 1,
            },
        }
    }
    difference.removed = old.keys().filter(|key| !new.contains_key(*key)).count();
    difference
}

/// Of a key like `model_terms:ir.ui.view,arch_db:shop.page⏎Low tide`.
fn correction(language: &str, key: &str, before: &str) -> Option<Correction> {
    let (place, term) = key.split_once('\n')?;
    let (kind, rest) = place.split_once(':')?;
    let (column, record) = rest.split_once(':')?;
    let (model, field) = column.split_once(',')?;
    Some(Correction {
        language: language.to_owned(),
        model: model.to_owned(),
        field: field.to_owned(),
        record: record.to_owned(),
        term: (kind == "model_terms").then(|| term.to_owned()),
        before: before.to_owned(),
    })
}
