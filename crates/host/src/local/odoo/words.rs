//! Translated terms in a page or a view: XML in which each text and each attribute that people read is one term.

/// The value with the term in its English where the old translation stood. `None` when it does not stand there as a whole, or when it cannot be
/// told from another term that is translated in the same words.
pub(super) fn put_back(value: &str, old: &str, term: &str, english: &str) -> Option<String> {
    let forms = [(old.to_owned(), term.to_owned()), (escaped(old), escaped(term))];
    let (old, term) = forms.into_iter().find(|(old, _)| !places(value, old).is_empty())?;
    let found = places(value, &old);
    if found.len() != places(english, &term).len() {
        return None;
    }
    let mut changed = String::with_capacity(value.len());
    let mut end = 0;
    for place in found {
        changed.push_str(&value[end..place]);
        changed.push_str(&term);
        end = place + old.len();
    }
    changed.push_str(&value[end..]);
    Some(changed)
}

/// Where a term stands as a whole: between tags or in the quotes of an attribute.
fn places(value: &str, term: &str) -> Vec<usize> {
    if term.is_empty() {
        return Vec::new();
    }
    let is_whole = |place: &usize| {
        let before = value[..*place].trim_end();
        let after = value[*place + term.len()..].trim_start();
        (before.is_empty() || before.ends_with(['>', '"', '\''])) && (after.is_empty() || after.starts_with(['<', '"', '\'']))
    };
    value.match_indices(term).map(|(place, _)| place).filter(is_whole).collect()
}

/// As it stands in an attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_put_back_where_it_stands_as_a_whole() {
        let page = "<p>Maree basse</p><b title=\"Maree basse\"> Maree basse du soir </b>";
        let english = "<p>Low tide</p><b title=\"Low tide\"> Low tide of the evening </b>";
        assert_eq!(
            put_back(page, "Maree basse", "Low tide", english).unwrap(),
            "<p>Low tide</p><b title=\"Low tide\"> Maree basse du soir </b>"
        );
        assert_eq!(put_back(page, "basse", "low", english), None);
        assert_eq!(put_back("<p>x</p>", "", "y", "<p>y</p>"), None);
    }

    #[test]
    fn what_somebody_has_written_otherwise_stays() {
        assert_eq!(put_back("<p>Marée très basse</p>", "Maree basse", "Low tide", "<p>Low tide</p>"), None);
    }

    #[test]
    fn two_terms_that_are_translated_alike_are_left_alone() {
        assert_eq!(put_back("<p>Fermer</p><p>Fermer</p>", "Fermer", "Close", "<p>Shut</p><p>Close</p>"), None);
    }

    #[test]
    fn attributes_have_their_own_form() {
        let value = put_back("<b title=\"A &amp; B\"/>", "A & B", "C & D", "<b title=\"C &amp; D\"/>");
        assert_eq!(value.unwrap(), "<b title=\"C &amp; D\"/>");
    }
}
