//! Paths that never reach an Odoo from outside: its database manager, which can copy, drop and replace databases with one password.
//!
//! This is the second lock. The first is `list_db = False` in Odoo's configuration, which also closes what does not show in the path: calls
//! of the service `db` inside `/jsonrpc` and `/xmlrpc/*` bodies. Those are deliberately not read here; an edge that parses bodies would
//! have to buffer them.

/// Whether Werkzeug could take `path` for `/web/database` or something below it.
///
/// Werkzeug decodes `%xx` once and merges slashes (`Map(merge_slashes=True)`); Python's `http.server` merges leading ones; Odoo's
/// `http_routing` strips a leading language code. Repeated decoding, dot segments, path parameters, backslashes and upper case are not read
/// so by today's versions, but nothing honest looks like this, so they are closed too.
pub(crate) fn is_database_manager(path: &str) -> bool {
    let decoded = decode(path);
    let mut as_written: Vec<&str> = Vec::new();
    let mut resolved: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default().trim() {
            "" | "." => {}
            ".." => {
                as_written.push("..");
                resolved.pop();
            }
            segment => {
                as_written.push(segment);
                resolved.push(segment);
            }
        }
    }
    names_database_manager(&as_written) || names_database_manager(&resolved)
}

/// With or without one segment (a language code) before it.
fn names_database_manager(segments: &[&str]) -> bool {
    segments.windows(2).take(2).any(|pair| pair[0].eq_ignore_ascii_case("web") && pair[1].eq_ignore_ascii_case("database"))
}

/// Decodes `%xx` until nothing changes; a sequence that is none stays as it is. What is no UTF-8 is replaced: the words looked for are ASCII.
fn decode(path: &str) -> String {
    let mut bytes = path.as_bytes().to_vec();
    // Each round takes away at least one level; a path has a bounded length, so this ends, and five levels are more than anyone decodes.
    for _ in 0..5 {
        let once = decode_once(&bytes);
        if once == bytes {
            break;
        }
        bytes = once;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn decode_once(bytes: &[u8]) -> Vec<u8> {
    let hexadecimal = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        if byte == b'%'
            && let Some(high) = hexadecimal(bytes.get(index + 1))
            && let Some(low) = hexadecimal(bytes.get(index + 2))
        {
            decoded.push((high * 16 + low) as u8);
            index += 3;
        } else {
            decoded.push(byte);
            index += 1;
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_database_manager_is_closed() {
        for path in [
            "/web/database",
            "/web/database/",
            "/web/database/manager",
            "/web/database/selector",
            "/web/database/backup",
            "//web/database/manager",
            "/web//database/manager",
            "///web///database",
            "/./web/./database/manager",
            "/web/./database",
            "/web/x/../database/manager",
            "/x/../web/database",
            "/../web/database",
            "/web/%64atabase/manager",
            "/%77%65%62/%64%61%74%61%62%61%73%65",
            "/web%2fdatabase%2Fmanager",
            "/web%2Fdatabase",
            "/%2fweb/database",
            "/web/%2e/database",
            "/web/x/%2e%2E/database",
            "/web/%2564atabase/manager",
            "/web/%252564atabase/manager",
            "/WEB/Database/Manager",
            "/web/database;jsessionid=1/manager",
            "/web\\database\\manager",
            "/web/%5cdatabase",
            "/web/database%20",
            "/web/database%09/manager",
            "/en/web/database/manager",
            "/pt_BR/web/database",
            "/web/database/../login",
        ] {
            assert!(is_database_manager(path), "{path}");
        }
    }

    #[test]
    fn other_paths_stay_open() {
        for path in [
            "/",
            "/web",
            "/web/login",
            "/web/databases",
            "/web/database_size",
            "/web/dataset/call_kw",
            "/website/database",
            "/web/content/database",
            "/database",
            "/shop/my/web/database",
            "/web/%zz/database2",
            "/jsonrpc",
            "/xmlrpc/2/db",
            "*",
        ] {
            assert!(!is_database_manager(path), "{path}");
        }
    }
}
