//! Bundles of scripts as a browser reads them: Odoo puts together what it finds, answers 200, and the page stays white.
//!
//! What Odoo itself has noticed stands in the bundle. Whether the scripts are JavaScript, Node.js says (`check_scripts.js`): it compiles them as a browser
//! does and runs none, as the instance's user, without a network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::json;

use super::{Fault, bundles, files::Files};
use crate::{
    error::{HostError, Result},
    local::exec::Program,
};

const CHECK_SCRIPTS: &str = include_str!("check_scripts.js");
/// Compiling is a matter of moments; what was made to take longer is ended.
const TIME: Duration = Duration::from_mins(1);
const OUTPUT: usize = 1024 * 1024;
/// How many faults are looked into.
const MOST: usize = 5;

/// A bundle's name and text.
pub(super) type Script = (String, String);

#[derive(Debug, Deserialize)]
struct Answer {
    broken: Vec<Broken>,
    undefined: Vec<Undefined>,
}

#[derive(Debug, Clone, Deserialize)]
struct Broken {
    name: String,
    line: Option<usize>,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Undefined {
    module: String,
    needs: String,
}

/// Where Node.js is; any user may run it. Beside the distributions lies one that is new enough for sure.
pub(super) fn node(distributions: &Path) -> Option<PathBuf> {
    let of_the_system = ["/usr/local/bin/node", "/usr/bin/node"].map(PathBuf::from);
    std::iter::once(distributions.join("tools/node/bin/node")).chain(of_the_system).find(|path| path.is_file())
}

/// What Odoo says in a bundle of scripts about its parts.
pub(super) fn noticed(bundle: &str, text: &str, files: &Files) -> Vec<Fault> {
    let mut faults = Vec::new();
    for line in text.lines().map(str::trim) {
        // The only line of a part, or of all templates.
        let said =
            ["throw new Error(", "console.error("].iter().find_map(|call| line.strip_prefix(call)?.trim_end_matches(';').strip_suffix(')'));
        let Some(said) = said.and_then(|literal| serde_json::from_str::<String>(literal).ok()) else { continue };
        let Some((reason, address)) = said.rsplit_once(" in file ") else { continue };
        let address = address.trim_matches(['\'', '"']);
        if !address.starts_with('/') {
            continue;
        }
        let reason = reason.trim_matches(['\'', '"']);
        let place = if reason.starts_with("Could not find ") { files.named_by(address) } else { None };
        let place = place.or_else(|| files.own(address)).unwrap_or_else(|| address.trim_start_matches('/').to_owned());
        faults.push(Fault::new(format!("the scripts `{bundle}` are not whole: {place}: {reason}"), said.clone()));
    }
    faults
}

/// What in these scripts a browser would not read. `pages` are the names of scripts that come together.
pub(super) async fn check(
    node: &Path,
    program: impl Fn(Program) -> Program,
    scripts: &[Script],
    pages: &[Vec<String>],
    files: &Files,
) -> Result<Vec<Fault>> {
    let own: Vec<&str> = files.modules.keys().map(AsRef::as_ref).collect();
    let pages: Vec<_> = pages.iter().map(|scripts| json!({ "scripts": scripts, "own": own })).collect();
    let answer = ask(node, &program, scripts, &pages).await?;
    let mut faults = Vec::new();
    for broken in answer.broken.into_iter().take(MOST) {
        let text = scripts.iter().find(|(name, _)| *name == broken.name).map_or("", |(_, text)| text);
        faults.push(locate(node, &program, &broken, text, files).await?);
    }
    for Undefined { module, needs } in answer.undefined.into_iter().take(MOST) {
        let address = address_of(&module);
        let place = address.as_deref().and_then(|address| {
            let text = files.read(address)?;
            let line = text.lines().position(|line| line.contains(&needs) && (line.contains("from") || line.contains("import")));
            Some(format!("{}{}", files.own(address)?, line.map_or_else(String::new, |line| format!(", line {}", line + 1))))
        });
        let place = place.unwrap_or_else(|| format!("the script {module}"));
        faults.push(Fault::new(
            format!("{place} imports `{needs}`, which no script of the page defines, so that none that depends on it is loaded"),
            String::new(),
        ));
    }
    Ok(faults)
}

/// `@shop/page/cart` is made of `/shop/static/src/page/cart.js`.
fn address_of(module: &str) -> Option<String> {
    let (module, path) = module.strip_prefix('@')?.split_once('/')?;
    Some(format!("/{module}/static/src/{path}.js"))
}

/// Which file of a bundle it is: the first part that by itself is none, or where the line is in the whole; and the line of the file as it was written.
async fn locate(node: &Path, program: &impl Fn(Program) -> Program, broken: &Broken, text: &str, files: &Files) -> Result<Fault> {
    let parts = parts(text);
    let alone: Vec<Script> = parts.iter().map(|part| (part.address.to_owned(), part.text.clone())).collect();
    let by_itself = ask(node, program, &alone, &[]).await?.broken.into_iter().next();
    let part = broken.line.and_then(|line| parts.iter().rev().find(|part| part.line <= line)).map(|part| part.address.to_owned());
    let (address, message) = match by_itself {
        Some(found) => (Some(found.name), found.message),
        None => (part, broken.message.clone()),
    };
    let bundle = bundles::name(&broken.name);
    let Some(address) = address else {
        return Ok(Fault::new(format!("the scripts `{bundle}` cannot be read: {message}"), String::new()));
    };
    let written = match files.read(&address) {
        Some(text) => {
            ask(node, program, &[(address.clone(), text.clone())], &[]).await?.broken.into_iter().next().map(|found| (found, text))
        }
        None => None,
    };
    let place = files.own(&address).unwrap_or_else(|| address.trim_start_matches('/').to_owned());
    Ok(match written {
        Some((Broken { line: Some(line), message, .. }, text)) => Fault::new(
            format!("the scripts `{bundle}` cannot be read: {place}, line {line}: {message}"),
            text.lines().nth(line - 1).unwrap_or_default().trim().chars().take(300).collect(),
        ),
        _ => Fault::new(format!("the scripts `{bundle}` cannot be read: {place}: {message}"), String::new()),
    })
}

async fn ask(node: &Path, program: &impl Fn(Program) -> Program, scripts: &[Script], pages: &[serde_json::Value]) -> Result<Answer> {
    let scripts: Vec<_> = scripts.iter().map(|(name, text)| json!({ "name": name, "text": text })).collect();
    let input = json!({ "scripts": scripts, "pages": pages }).to_string();
    let checking = Program::new(node).args(["--max-old-space-size=512", "-e", CHECK_SCRIPTS]).stdin(input);
    let finished = program(checking.without_network().output_limit(OUTPUT).time_limit(TIME)).run().await?;
    let finished = finished.expect_success("the scripts could not be read")?;
    serde_json::from_slice(&finished.stdout)
        .map_err(|error| HostError::machine_from("what Node.js says of the scripts could not be read", error))
}

/// One file in a bundle.
struct Part<'a> {
    address: &'a str,
    /// Where it begins, from 1.
    line: usize,
    text: String,
}

/// Before each file stands `/* its address */`. What stands behind the last one, the templates, is no file's.
fn parts(bundle: &str) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    for (number, line) in bundle.lines().enumerate() {
        let header = line.strip_prefix("/* ").and_then(|rest| rest.strip_suffix(" */")).filter(|address| address.starts_with('/'));
        match (header, parts.last_mut()) {
            (Some(address), _) => parts.push(Part { address, line: number + 1, text: String::new() }),
            (None, Some(part)) => {
                part.text.push_str(line);
                part.text.push('\n');
            }
            (None, None) => {}
        }
    }
    parts
}

/// The scripts of each page, by its name.
pub(super) fn by_page(pages: &BTreeMap<String, Vec<String>>, scripts: &[Script]) -> Vec<Vec<String>> {
    let is_read = |name: &String| scripts.iter().any(|(read, _)| read == name);
    pages.values().map(|names| names.iter().filter(|name| is_read(name)).cloned().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::of, *};

    #[test]
    fn what_odoo_says_in_a_bundle_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let files = of(directory.path(), &[("shop/__manifest__.py", "{'assets': {\n'b.c': ['shop/static/lost.js']}}")]);
        let bundle = "\n/* /shop/static/lost.js */\nconsole.error(\"'Could not find /shop/static/lost.js' in file '/shop/static/lost.js'\");;\n\n/* /web/x.js */\nconsole.error(\"an own one\");\n\n  odoo.define(\"b.c.bundle.xml\", [], function(require) {\n  throw new Error(\"'Invalid XML template: Opening and ending tag mismatch: div line 3 and t, line 4, column 5' in file '/shop/static/t.xml'\");\n";
        let faults: Vec<String> = noticed("b.c", bundle, &files).into_iter().map(|fault| fault.summary).collect();
        assert_eq!(
            faults,
            [
                "the scripts `b.c` are not whole: addons/shop/__manifest__.py, line 2: Could not find /shop/static/lost.js",
                "the scripts `b.c` are not whole: addons/shop/static/t.xml: Invalid XML template: Opening and ending tag mismatch: div line 3 and t, line 4, column 5",
            ]
        );
    }

    #[tokio::test]
    async fn a_script_that_no_browser_reads_is_found_with_its_line() {
        let Some(node) = node(Path::new("/var/cache/ocore/odoo")) else {
            eprintln!("this machine has no Node.js");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let files = of(
            directory.path(),
            &[
                ("shop/static/src/a.js", "import { x } from \"@web/y\";\nexport class A {\n    go() {\n        return x(;\n    }\n}\n"),
                ("shop/static/src/b.js", "const shared = 1;\n"),
                ("shop/static/src/c.js", "import { lost } from \"@shop/lost\";\n"),
            ],
        );
        let check = async |text: &str| {
            let scripts = [("b.c".to_owned(), text.to_owned())];
            let found = super::check(&node, |program| program, &scripts, &[vec!["b.c".to_owned()]], &files).await.unwrap();
            found.into_iter().map(|fault| fault.summary).collect::<Vec<_>>()
        };
        let good = "\n/* /web/y.js */\nodoo.define('@web/y',[],function(require){});\n";
        assert!(check(good).await.is_empty());
        let broken = format!(
            "{good};\n/* /shop/static/src/a.js */\nodoo.define('@shop/a',['@web/y'],function(require){{class A{{go(){{return x(;}}}}}});"
        );
        assert_eq!(check(&broken).await, ["the scripts `b.c` cannot be read: addons/shop/static/src/a.js, line 4: Unexpected token ';'"]);
        // Each is one, together they are none.
        let twice = format!("{good};\n/* /web/shared.js */\nconst shared=0;\n;\n/* /shop/static/src/b.js */\nconst shared=1;");
        let found = check(&twice).await;
        assert_eq!(found, ["the scripts `b.c` cannot be read: addons/shop/static/src/b.js: Identifier 'shared' has already been declared"]);
        let lost = format!("{good};\n/* /shop/static/src/c.js */\nodoo.define('@shop/c',['@shop/lost'],function(require){{}});");
        assert!(check(&lost).await[0].starts_with("addons/shop/static/src/c.js, line 1 imports `@shop/lost`, which no script"));
    }
}
