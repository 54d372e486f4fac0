//! What of a line of Odoo's log nobody needs, and whoever has it could use: passwords, tokens and signatures in the addresses of requests. A link to set
//! a new password is one, and Odoo writes each address that is asked for.

/// Parameters whose names have one of these in them. Odoo's own: `token`, `access_token`, `password`, `signup_token`, `hash`, `session_id`, `otp`.
const SECRETS: &[&str] = &["token", "password", "passwd", "secret", "session", "signature", "hash", "otp", "api_key", "apikey"];

/// The line with `***` for each such value.
pub(super) fn line(line: &str) -> String {
    let mut redacted = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((place, length)) = sign(rest) {
        let (before, after) = rest.split_at(place + length);
        redacted.push_str(before);
        let name = before[..place].rsplit(ends_name).next().unwrap_or_default().to_ascii_lowercase();
        let end = after.find(ends_value).unwrap_or(after.len());
        if end > 0 && SECRETS.iter().any(|secret| name.contains(secret)) {
            redacted.push_str(crate::variables::MASK);
            rest = &after[end..];
        } else {
            rest = after;
        }
    }
    redacted.push_str(rest);
    redacted
}

/// The next equals sign and its length: plain, or as it is written in an address within an address.
fn sign(text: &str) -> Option<(usize, usize)> {
    let plain = text.find('=').map(|place| (place, 1));
    let written = text.find("%3D").into_iter().chain(text.find("%3d")).min().map(|place| (place, 3));
    plain.into_iter().chain(written).min()
}

fn ends_name(character: char) -> bool {
    !(character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.' | '%' | '[' | ']'))
}

fn ends_value(character: char) -> bool {
    character.is_whitespace() || matches!(character, '&' | ';' | '"' | '\'' | '<' | '>' | '#' | ')' | ',')
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_link_that_opens_an_account_is_of_no_use_to_who_reads_the_log() {
        let asked = r#"127.0.0.1 - - "GET /web/reset_password?db=odoo&token=eyJ1aWQ.abc-_1&login=a HTTP/1.1" 200"#;
        assert_eq!(line(asked), r#"127.0.0.1 - - "GET /web/reset_password?db=odoo&token=***&login=a HTTP/1.1" 200"#);
        for (said, left) in [
            ("/my/orders/1?access_token=0a-b", "/my/orders/1?access_token=***"),
            ("x?ACCESS_TOKEN=1&next=/a?token=2", "x?ACCESS_TOKEN=***&next=/a?token=***"),
            ("x?next=%2Fweb%2Freset_password%3Ftoken%3Deyj&a=1", "x?next=%2Fweb%2Freset_password%3Ftoken%3D***&a=1"),
            ("unused = 1, a == b, token=", "unused = 1, a == b, token="),
            ("no values here", "no values here"),
        ] {
            assert_eq!(line(said), left);
        }
    }
}
