//! What a bundle of styles says of its own failure: Odoo answers 200, with the styles of before and the error as a rule of CSS.

use super::{Fault, files::Files};

const ERROR: &str = "css_error_message {";
/// Odoo has the styles of a bundle compiled as one text, which has this name (`/stdin` where Odoo runs).
const TEXT: &str = "stdin";

/// The errors of a bundle, as they were said; `None` for one that was built.
pub(super) fn error(body: &str) -> Option<String> {
    let (_, rest) = body.rsplit_once(ERROR)?;
    let quoted = rest.split_once("content: \"")?.1;
    let mut said = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => match characters.next() {
                Some('A') => said.push('\n'),
                Some(other) => said.push(other),
                None => break,
            },
            other => said.push(other),
        }
    }
    Some(said)
}

/// The sentence for it.
pub(super) fn explain(bundle: &str, said: &str, files: &Files) -> Fault {
    let reason = said.lines().next().unwrap_or_default().trim().trim_start_matches("Error: ").trim_end_matches('.').to_owned();
    let missing =
        ["Could not find ", "Could not get content for ", "File "].iter().find_map(|words| reason.strip_prefix(words)?.split(' ').next());
    let place = match missing.filter(|address| address.contains('/')) {
        Some(address) => files.named_by(address),
        None => place(said, files),
    };
    // Styles that somebody has written in Odoo's own editor lie in the database; no deployment brings them, and none mends them.
    let foreign = place.is_none() && parts(said).iter().any(|part| part.starts_with("/_custom/") || part.starts_with('<'));
    let place = place.map_or_else(String::new, |place| format!("{place}: "));
    Fault { summary: format!("the styles `{bundle}` cannot be built: {place}{reason}"), excerpt: said.trim().to_owned(), foreign }
}

/// Addresses of the files that were compiled together, in their order.
fn parts(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| line.strip_prefix("    - ")).map(str::trim).collect()
}

/// The file and the line of an error in the text of all files.
fn place(said: &str, files: &Files) -> Option<String> {
    let (number, name) = said.lines().find_map(|line| {
        let (number, name) = line.trim().strip_prefix("on line ")?.split_once(" of ")?;
        Some((number.split(':').next()?.parse::<usize>().ok()?, name))
    })?;
    let found = if name.trim_start_matches('/') == TEXT { in_parts(said, number, files) } else { Some((name.to_owned(), number)) };
    let (address, line) = found?;
    Some(format!("{}, line {line}", files.own(&address).unwrap_or_else(|| address.trim_start_matches('/').to_owned())))
}

/// Before each file stands a line with a mark of its own. The line that the compiler shows is not always the one that it means, so it counts only where a file before
/// cannot be read: then what the error names is looked for in the files of the repository.
fn in_parts(said: &str, number: usize, files: &Files) -> Option<(String, usize)> {
    let quoted = said.lines().next().and_then(|reason| reason.split('"').nth(1)).map(|words| words.trim_start_matches('.').trim());
    let quoted = quoted.filter(|words| !words.is_empty());
    let holds = |content: &str, wanted: &str| {
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || "-_".contains(next));
        content.lines().position(|line| line.match_indices(wanted).any(|(at, _)| ends(&line[at + wanted.len()..])))
    };
    let mut before = 0;
    for address in parts(said) {
        let Some(content) = files.read(address) else { break };
        let lines = content.matches('\n').count() + 1;
        if number <= before + 1 + lines {
            let line = number.checked_sub(before + 1).filter(|line| *line > 0)?;
            // The compiler's count is behind by a line or two in a long text.
            let near = quoted.and_then(|quoted| {
                (line..line + 4).find(|line| content.lines().nth(line - 1).is_some_and(|text| holds(text, quoted).is_some()))
            });
            return Some((address.to_owned(), near.unwrap_or(line)));
        }
        before += 1 + lines;
    }
    let named = said.lines().next().and_then(|reason| reason.split('"').find(|word| word.starts_with('$')));
    let shown = said.lines().find_map(|line| line.strip_prefix(">> ")).map(str::trim).filter(|text| !text.is_empty());
    let own = parts(said).into_iter().filter_map(|address| files.own(address).and_then(|_| Some((address, files.read(address)?))));
    let own: Vec<(&str, String)> = own.collect();
    [named, shown]
        .into_iter()
        .flatten()
        .find_map(|wanted| own.iter().find_map(|(address, content)| Some(((*address).to_owned(), holds(content, wanted)? + 1))))
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::of, *};

    const SAID: &str = "Error: Undefined variable: \\\"$hul\\\".\\A        on line 7:20 of /stdin\\A>> $hull: #0a5078;\\A\\A   -------------------^\\AThis error occurred while compiling the bundle 'web.assets_frontend' containing:\\A    - /paint/static/first.scss\\A    - /paint/static/front.scss";

    #[test]
    fn an_error_is_read_out_of_its_rule_and_has_its_file_and_line() {
        let directory = tempfile::tempdir().unwrap();
        let files = of(
            directory.path(),
            &[("paint/static/first.scss", "\n$a: 1;\n"), ("paint/static/front.scss", "$hull: #0a5078;\n.o_paint { color: $hul; }\n")],
        );
        let body = format!(
            "/* before */\n/* ## CSS error message ##*/\nbody::before {{\n  content: \"A css error occured\";\n}}\n\ncss_error_message {{\n  content: \"{SAID}\";\n}}\n"
        );
        let said = error(&body).unwrap();
        let fault = explain("web.assets_frontend", &said, &files);
        assert_eq!(
            fault.summary,
            "the styles `web.assets_frontend` cannot be built: addons/paint/static/front.scss, line 2: Undefined variable: \"$hul\""
        );
        assert!(fault.excerpt.contains(">> $hull") && !fault.foreign);
        assert_eq!(error("body{color:red}"), None);
    }

    #[test]
    fn behind_a_file_that_is_not_there_the_line_is_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let files = of(directory.path(), &[("paint/static/front.scss", "$hull: 1;\n.o_paint { color: $hul; }\n")]);
        let said = "Error: Undefined variable: \"$hul\".\n        on line 70:20 of stdin\n>> .o_paint { color: $hul; }\ncontaining:\n    - <inline sass>\n    - /_custom/web.assets_frontend/x.scss\n    - /paint/static/front.scss";
        assert!(explain("b.c", said, &files).summary.contains("addons/paint/static/front.scss, line 2: Undefined"));
        let elsewhere = said.replace("$hul", "$other");
        assert!(explain("b.c", &elsewhere, &files).foreign, "of the database");
    }

    #[test]
    fn a_file_that_is_not_there_is_named_by_who_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let files = of(directory.path(), &[("paint/__manifest__.py", "{\n'assets': {'b.c': ['paint/static/lost.css']},\n}")]);
        // The second one where they are mirrored.
        for said in ["Could not find /paint/static/lost.css", "Could not get content for paint/static/lost.css."] {
            let wanted = format!("the styles `b.c` cannot be built: addons/paint/__manifest__.py, line 2: {}", said.trim_end_matches('.'));
            assert_eq!(explain("b.c", said, &files).summary, wanted);
        }
    }
}
