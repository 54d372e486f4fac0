//! What a package that is compiled here does not find: a library, a header or a program of the system, which no requirements file can bring.

/// How many lines of a compiler are kept.
const MOST: usize = 12;
/// Headers, libraries and programs by their beginning, and the package of Debian that has them.
const PACKAGES: &[(&str, &str)] = &[
    ("Python.h", "python3-dev"),
    ("lber.h", "libldap-dev"),
    ("ldap.h", "libldap-dev"),
    ("sasl/", "libsasl2-dev"),
    ("sasl.h", "libsasl2-dev"),
    ("libpq-fe.h", "libpq-dev"),
    ("pg_config", "libpq-dev"),
    ("libxml", "libxml2-dev"),
    ("xml2-config", "libxml2-dev"),
    ("libxslt", "libxslt1-dev"),
    ("xslt-config", "libxslt1-dev"),
    ("xmlsec", "libxmlsec1-dev"),
    ("ffi.h", "libffi-dev"),
    ("libffi", "libffi-dev"),
    ("openssl/", "libssl-dev"),
    ("openssl", "libssl-dev"),
    ("jpeglib.h", "libjpeg-dev"),
    ("jpeg", "libjpeg-dev"),
    ("zlib", "zlib1g-dev"),
    ("ft2build.h", "libfreetype-dev"),
    ("freetype", "libfreetype-dev"),
    ("cairo", "libcairo2-dev"),
    ("mysql", "default-libmysqlclient-dev"),
    ("mariadb", "default-libmysqlclient-dev"),
    ("cups/", "libcups2-dev"),
    ("magic.h", "libmagic-dev"),
    ("sqlite3.h", "libsqlite3-dev"),
    ("libusb", "libusb-1.0-0-dev"),
    ("sql.h", "unixodbc-dev"),
    ("krb5", "libkrb5-dev"),
    ("gssapi", "libkrb5-dev"),
    ("geos", "libgeos-dev"),
    ("gdal", "libgdal-dev"),
    ("proj", "libproj-dev"),
    ("gcc", "build-essential"),
    ("g++", "build-essential"),
    ("cc", "build-essential"),
    ("x86_64-linux-gnu-gcc", "build-essential"),
    ("aarch64-linux-gnu-gcc", "build-essential"),
    ("make", "build-essential"),
    ("pkg-config", "pkg-config"),
    ("cmake", "cmake"),
    ("swig", "swig"),
    ("cargo", "cargo"),
    ("rustc", "cargo"),
];

/// The lines of a build that say why it failed, in their order: of a compiler, a linker, or a build back end in Python.
pub(super) fn decisive_lines(output: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in output.lines().map(str::trim).filter(|line| says_why(line)) {
        if !lines.iter().any(|known| known == line) {
            lines.push(line.chars().take(300).collect());
        }
    }
    lines.truncate(MOST);
    lines
}

fn says_why(line: &str) -> bool {
    // What pip says of itself, and a command that has failed for a reason that stands before it.
    if line.starts_with("ERROR: ") || line.starts_with("error: subprocess-exited") || line.contains("' failed with exit code") {
        return false;
    }
    let is_exception = line.split_once(": ").is_some_and(|(class, _)| {
        let name = class.rsplit('.').next().unwrap_or(class);
        (name.ends_with("Error") || name.ends_with("Exception"))
            && class.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte))
    });
    is_exception && !line.starts_with("subprocess.")
        || line.contains("fatal error: ")
        || line.contains(": error: ")
        || line.starts_with("error: command ")
        || line.starts_with("error: ")
        || line.contains("cannot find -l")
        || (line.starts_with("Package ") && line.contains(" not found"))
        || line.starts_with("No package '")
        || (line.contains("executable") && line.contains("not found"))
        || line.contains("command not found")
        || line.contains("can't find Rust compiler")
        || line.contains("development packages are installed")
}

/// The sentence for what is missing on this server; `None` when the lines do not say that something is.
pub(super) fn of_the_system(lines: &[String]) -> Option<String> {
    let missing = lines.iter().find_map(|line| missing(line))?;
    let package = PACKAGES.iter().find(|(name, _)| missing.starts_with(name)).map(|(_, package)| *package);
    let ask = match package {
        Some(package) => format!("ask the operator of this server to install Debian's package `{package}`"),
        None => "ask the operator of this server to install the package that has it (`apt-file search` finds it)".to_owned(),
    };
    Some(format!("`{missing}` is missing, which belongs to {}; {ask}", kind(&missing)))
}

fn kind(missing: &str) -> &'static str {
    if missing.rsplit('.').next() == Some("h") || missing.starts_with("lib") { "a library of the system" } else { "the system" }
}

/// What a line says is not there.
fn missing(line: &str) -> Option<String> {
    let between = |before: &str, after: &str| {
        line.split_once(before)?.1.split_once(after).map(|(name, _)| name.trim_matches(['\'', '"', '`']).to_owned())
    };
    if let Some(header) = between("fatal error: ", ": No such file") {
        return Some(header);
    }
    if let Some((_, library)) = line.split_once("cannot find -l") {
        return Some(format!("lib{}", library.split([':', ' ']).next()?));
    }
    if let Some(package) =
        line.strip_prefix("Package ").and_then(|rest| rest.split([' ', ',']).next()).filter(|_| line.contains("not found"))
    {
        return Some(package.trim_matches(['\'', '"']).to_owned());
    }
    if line.contains("can't find Rust compiler") {
        return Some("cargo".to_owned());
    }
    if line.contains("libxml2") && line.contains("libxslt") {
        return Some("libxml2".to_owned());
    }
    let program = between("error: command '", "' failed: No such file")
        .or_else(|| between("No such file or directory: '", "'"))
        .or_else(|| {
            line.contains("executable").then(|| line.trim_start_matches("Error: ").split(' ').next().unwrap_or_default().to_owned())
        })
        .or_else(|| line.strip_suffix(": command not found").and_then(|rest| rest.rsplit([' ', ':']).next()).map(str::to_owned))?;
    let name = program.rsplit('/').next().unwrap_or(&program).to_owned();
    PACKAGES.iter().any(|(known, _)| name == *known).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_lacks_is_named_with_its_package() {
        for (output, expected) in [
            ("psycopg/psycopg.h:36:10: fatal error: libpq-fe.h: No such file or directory", "`libpq-fe.h` is missing"),
            ("Error: pg_config executable not found.", "`libpq-dev`"),
            ("/usr/bin/ld: cannot find -lldap_r: No such file or directory", "`libldap_r`"),
            ("Package 'xmlsec1', required by 'virtual:world', not found", "`libxmlsec1-dev`"),
            ("Package libffi was not found in the pkg-config search path.", "`libffi-dev`"),
            ("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory", "`build-essential`"),
            ("src/x.c:1:10: fatal error: Python.h: No such file or directory", "`python3-dev`"),
            ("error: can't find Rust compiler", "`cargo`"),
            ("FileNotFoundError: [Errno 2] No such file or directory: 'swig'", "`swig`"),
            ("thing.c:1:10: fatal error: strange/thing.h: No such file or directory", "apt-file search"),
        ] {
            let said = of_the_system(&decisive_lines(&format!("  building\n      {output}\n"))).unwrap_or_default();
            assert!(said.contains(expected), "{output}: {said}");
        }
        for output in [
            "src/x.c:3:1: error: expected ';' before 'int'",
            "FileNotFoundError: [Errno 2] No such file or directory: 'README.md'",
            "ValueError: no",
        ] {
            let lines = decisive_lines(output);
            assert_eq!((lines.len(), of_the_system(&lines)), (1, None), "{output}");
        }
    }
}
