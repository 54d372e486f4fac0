//! The cookies of a browser's session. HttpOnly, so that no script reads them; `__Host-` under https, so that no other host of the same
//! domain (an instance, say) can plant one.

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::{DateTime, Utc};
use ocore_control::{Settings, accounts::Tokens};

const ACCESS: &str = "ocore_access";
const REFRESH: &str = "ocore_refresh";

pub(crate) fn access_token(headers: &HeaderMap, settings: &Settings) -> Option<String> {
    value(headers, &name(ACCESS, settings))
}

pub(crate) fn refresh_token(headers: &HeaderMap, settings: &Settings) -> Option<String> {
    value(headers, &name(REFRESH, settings))
}

/// Sets both cookies of a session.
pub(crate) fn set(headers: &mut HeaderMap, tokens: &Tokens, now: DateTime<Utc>, settings: &Settings) {
    append(headers, settings, ACCESS, &tokens.access_token, (tokens.access_expires_at - now).num_seconds());
    append(headers, settings, REFRESH, &tokens.refresh_token, (tokens.refresh_expires_at - now).num_seconds());
}

/// Removes both cookies.
pub(crate) fn clear(headers: &mut HeaderMap, settings: &Settings) {
    append(headers, settings, ACCESS, "", 0);
    append(headers, settings, REFRESH, "", 0);
}

fn secure(settings: &Settings) -> bool {
    settings.public_url.starts_with("https://")
}

fn name(base: &str, settings: &Settings) -> String {
    if secure(settings) { format!("__Host-{base}") } else { base.to_owned() }
}

fn append(headers: &mut HeaderMap, settings: &Settings, base: &str, value: &str, seconds: i64) {
    let secure = if secure(settings) { "; Secure" } else { "" };
    let cookie = format!("{}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}{secure}", name(base, settings), seconds.max(0));
    // Tokens are base64url and dots.
    if let Ok(mut cookie) = HeaderValue::from_str(&cookie) {
        cookie.set_sensitive(true);
        headers.append(header::SET_COOKIE, cookie);
    }
}

fn value(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; ocore_access=x.y=z ; b=2"));
        headers.append(header::COOKIE, HeaderValue::from_static("ocore_refresh="));
        assert_eq!(value(&headers, "ocore_access").as_deref(), Some("x.y=z"));
        assert_eq!(value(&headers, "ocore_refresh"), None);
        assert_eq!(value(&headers, "access"), None);
    }
}
