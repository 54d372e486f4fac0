//! What a changed field of a model means for its column and the rows that are there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Expression, Field, Way};

/// A field that was not there, of a model that has rows already.
pub(super) fn appears(model: &str, name: &str, field: &Field) -> (Way, String) {
    let what = format!("the field `{name}` of `{model}` is new");
    if field.dynamic {
        return (Way::UpdateAndHoldWrites, format!("{what}, and what it is cannot be read from its definition"));
    }
    if is_required(field) {
        return (Way::UpdateAndHoldWrites, format!("{what} and required: rows that are written meanwhile would have none"));
    }
    if is_filled(field) {
        return (Way::UpdateAndHoldWrites, format!("{what} and computed into a column, which is filled for every row"));
    }
    if is_set(field, "delegate") || is_set(field, "company_dependent") {
        return (Way::UpdateAndHoldWrites, format!("{what} and kept in another place than its rows"));
    }
    (Way::Update, what)
}

/// A field that is defined otherwise; nothing when it is the same.
pub(super) fn changes(model: &str, name: &str, old: &Field, new: &Field) -> Vec<(Way, String)> {
    let field = format!("the field `{name}` of `{model}`");
    if old.kind != new.kind {
        return vec![(Way::UpdateAndHoldWrites, format!("{field} has another type: {} instead of {}", new.kind, old.kind))];
    }
    let is_other = || old.positional_sources() != new.positional_sources() || old.keyword_sources() != new.keyword_sources();
    if old.dynamic != new.dynamic || (old.dynamic && is_other()) {
        return vec![(Way::UpdateAndHoldWrites, format!("{field} has changed, and what it is cannot be read from its definition"))];
    }
    let names: BTreeSet<String> = old.arguments().into_iter().chain(new.arguments()).collect();
    names
        .iter()
        .filter_map(|argument| {
            let (before, now) = (old.argument(argument), new.argument(argument));
            if before.map(|expression| &expression.source) == now.map(|expression| &expression.source) {
                return None;
            }
            let (way, meaning) = argument_changes(argument, before, now, old, new);
            Some((way, format!("{field}: {meaning}")))
        })
        .collect()
}

fn argument_changes(argument: &str, before: Option<&Expression>, now: Option<&Expression>, old: &Field, new: &Field) -> (Way, String) {
    let hold = |meaning: &str| (Way::UpdateAndHoldWrites, meaning.to_owned());
    let stored = |field: &Field| !is_computed(field) || is_set(field, "store");
    match argument {
        "required" if is_required(new) => hold("it becomes required"),
        "required" => (Way::Update, "it is not required any more".to_owned()),
        "store" => hold("it is stored in another way"),
        "compute" | "related" if stored(old) || stored(new) => hold("what fills its column has changed"),
        "selection" => selection_changes(before, now),
        "selection_add" if before.is_some() => hold("what is added to its selection has changed"),
        "company_dependent" | "translate" | "size" | "digits" | "attachment" | "delegate" => {
            hold(&format!("`{argument}` has changed, and with it its column"))
        }
        "comodel_name" | "relation" | "column1" | "column2" | "ondelete" | "inverse_name" => {
            hold(&format!("`{argument}` has changed: it refers to other rows, or otherwise"))
        }
        _ => (Way::Update, format!("`{argument}` has changed")),
    }
}

/// More to choose from does no harm; less takes values away from rows.
fn selection_changes(before: Option<&Expression>, now: Option<&Expression>) -> (Way, String) {
    let (Some(before), Some(now)) = (keys(before), keys(now)) else {
        return (Way::UpdateAndHoldWrites, "its selection has changed".to_owned());
    };
    let gone: Vec<&str> = before.difference(&now).map(String::as_str).collect();
    if gone.is_empty() {
        (Way::Update, "its selection has changed, and nothing of it is gone".to_owned())
    } else {
        (Way::UpdateAndHoldWrites, format!("its selection has no {} any more: rows that have it lose it", gone.join(", ")))
    }
}

fn keys(selection: Option<&Expression>) -> Option<BTreeSet<String>> {
    let pairs = selection?.value.as_ref()?.as_array()?;
    pairs.iter().map(|pair| Some(pair.as_array()?.first()?.as_str()?.to_owned())).collect()
}

/// What is not plainly false is taken for true.
fn is_required(field: &Field) -> bool {
    is_set(field, "required")
}

fn is_set(field: &Field, argument: &str) -> bool {
    field.argument(argument).is_some_and(|expression| !matches!(expression.value, Some(Value::Bool(false))) && expression.source != "None")
}

fn is_computed(field: &Field) -> bool {
    is_set(field, "compute") || is_set(field, "related")
}

/// Its column is computed for the rows that are there.
fn is_filled(field: &Field) -> bool {
    is_computed(field) && is_set(field, "store")
}

impl Field {
    /// What the positional arguments of Odoo's own fields are called (`odoo/orm/fields*.py`).
    fn positions(&self) -> &'static [&'static str] {
        match self.kind.as_str() {
            "Selection" | "Reference" => &["selection", "string"],
            "Many2one" => &["comodel_name", "string"],
            "One2many" => &["comodel_name", "inverse_name", "string"],
            "Many2many" => &["comodel_name", "relation", "column1", "column2", "string"],
            "Float" => &["string", "digits"],
            "Monetary" => &["string", "currency_field"],
            _ => &["string"],
        }
    }

    fn argument(&self, name: &str) -> Option<&Expression> {
        let by_place = || self.positional.get(self.positions().iter().position(|position| *position == name)?);
        self.keywords.get(name).or_else(by_place)
    }

    fn arguments(&self) -> Vec<String> {
        let by_place = self.positions().iter().take(self.positional.len()).map(|name| (*name).to_owned());
        by_place.chain(self.keywords.keys().cloned()).collect()
    }

    fn positional_sources(&self) -> Vec<&str> {
        self.positional.iter().map(|expression| expression.source.as_str()).collect()
    }

    fn keyword_sources(&self) -> Vec<(&str, &str)> {
        self.keywords.iter().map(|(name, expression)| (name.as_str(), expression.source.as_str())).collect()
    }
}
