//! A message's HTML, made safe to look at: scripts, forms and frames are taken out, files that it shows are put in, and nothing is fetched from
//! anywhere unless the reader asks. The answer's `Content-Security-Policy` says the same a second time, and keeps it in a sandbox.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use ammonia::{Builder, UrlRelative};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::message::Body;

/// Files beyond this are not put into the page.
const INLINE_BYTES: usize = 8 << 20;

/// HTML with more tags than this is not read: what a browser's rules make of tags that are never closed takes time by the square of their number.
/// A quotation of a thousand lines has fewer.
const TAGS: usize = 30_000;

pub(crate) const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; form-action 'none'; base-uri 'none'; \
     frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox";
pub(crate) const POLICY_WITH_REMOTE: &str = "default-src 'none'; img-src data: https: http:; style-src 'unsafe-inline'; font-src data:; form-action \
     'none'; base-uri 'none'; frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox";

/// A whole page that shows the message.
pub(crate) fn page(body: &Body, remote: bool) -> String {
    let text = || format!("<pre style=\"white-space:pre-wrap;font:14px/1.5 monospace\">{}</pre>", ammonia::clean_text(&body.text));
    let content = match &body.html {
        Some(html) if html.matches('<').count() > TAGS => {
            format!("<p><em>This HTML has too many elements to be shown; here is its text, and its source can be had.</em></p>{}", text())
        }
        Some(html) => sanitize(html, body, remote),
        None => text(),
    };
    format!(
        "<!doctype html><html><head><meta charset=\"utf-8\"><meta name=\"referrer\" content=\"no-referrer\">\
         <meta name=\"viewport\" content=\"width=device-width\"></head><body style=\"margin:12px;font-family:sans-serif\">{content}</body></html>"
    )
}

fn sanitize(html: &str, body: &Body, remote: bool) -> String {
    let mut builder = Builder::default();
    let inline = Arc::clone(&body.inline);
    builder
        .add_tags(["font", "main", "section", "u"])
        .add_generic_attributes(["style", "align", "valign", "bgcolor", "width", "height", "dir", "class"])
        .add_tag_attributes("table", ["border", "cellpadding", "cellspacing"])
        .add_tag_attributes("font", ["color", "face", "size"])
        .add_tag_attributes("a", ["target"])
        .url_schemes(HashSet::from(["http", "https", "mailto", "tel", "cid", "data"]))
        .url_relative(UrlRelative::Deny)
        .link_rel(Some("noopener noreferrer nofollow"))
        .set_tag_attribute_value("a", "target", "_blank")
        .filter_style_properties(STYLES.iter().copied().collect())
        .attribute_filter(move |element, attribute, value| match (element, attribute) {
            ("img", "src") => image(value, &inline, remote).map(Cow::Owned),
            (_, "href" | "cite" | "src" | "background") if value.trim_start().to_ascii_lowercase().starts_with("data:") => None,
            (_, "style") if value.to_ascii_lowercase().contains("url(") => None,
            _ => Some(Cow::Borrowed(value)),
        });
    builder.clean(html).to_string()
}

/// Looks, but nothing that moves out of its place or fetches.
const STYLES: &[&str] = &[
    "background-color",
    "border",
    "border-bottom",
    "border-collapse",
    "border-color",
    "border-left",
    "border-radius",
    "border-right",
    "border-spacing",
    "border-style",
    "border-top",
    "border-width",
    "color",
    "direction",
    "display",
    "font",
    "font-family",
    "font-size",
    "font-style",
    "font-variant",
    "font-weight",
    "height",
    "letter-spacing",
    "line-height",
    "list-style-type",
    "margin",
    "margin-bottom",
    "margin-left",
    "margin-right",
    "margin-top",
    "max-height",
    "max-width",
    "min-height",
    "min-width",
    "opacity",
    "overflow",
    "padding",
    "padding-bottom",
    "padding-left",
    "padding-right",
    "padding-top",
    "table-layout",
    "text-align",
    "text-decoration",
    "text-indent",
    "text-transform",
    "vertical-align",
    "white-space",
    "width",
    "word-break",
    "word-wrap",
];

/// An image's source: a file of the message itself, or one from elsewhere when that is asked for.
fn image(source: &str, inline: &BTreeMap<String, (String, Vec<u8>)>, remote: bool) -> Option<String> {
    let source = source.trim();
    if let Some((_, id)) = source.split_once(':').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("cid")) {
        // RFC 2392: percent-encoded like any address; some senders forget it.
        let (kind, content) = inline.get(id).or_else(|| inline.get(&*percent_decode(id)))?;
        let raster = matches!(kind.as_str(), "image/png" | "image/jpeg" | "image/jpg" | "image/gif" | "image/webp" | "image/bmp");
        return (raster && content.len() <= INLINE_BYTES).then(|| format!("data:{kind};base64,{}", STANDARD.encode(content)));
    }
    let lower = source.to_ascii_lowercase();
    let raster = ["data:image/png", "data:image/jpeg", "data:image/gif", "data:image/webp"].iter().any(|start| lower.starts_with(start));
    (raster || remote && (lower.starts_with("https://") || lower.starts_with("http://"))).then(|| source.to_owned())
}

/// `+` is a plus here, as nowhere in a form.
fn percent_decode(text: &str) -> Cow<'_, str> {
    let pair = text.replace('+', "%2B");
    match url::form_urlencoded::parse(pair.replace('&', "%26").replace('=', "%3D").as_bytes()).next() {
        Some((decoded, _)) => Cow::Owned(decoded.into_owned()),
        None => Cow::Borrowed(text),
    }
}

/// Whether the page would show more if it might fetch.
pub(crate) fn has_remote(html: &str) -> bool {
    let html = html.to_ascii_lowercase();
    ["src=\"http", "src='http", "src=http", "url(http", "url('http", "url(\"http"].iter().any(|sign| html.contains(sign))
}

/// The addresses that a message links to. They are listed and not followed: a catcher has no business in the network.
pub(crate) fn link_check(body: &Body) -> Value {
    let mut links = BTreeSet::new();
    for text in body.html.iter().map(String::as_str).chain([body.text.as_str()]) {
        for (start, _) in text.match_indices("http") {
            let link: String = text[start..].chars().take_while(|c| !c.is_whitespace() && !"\"'<>()".contains(*c)).collect();
            if link.starts_with("http://") || link.starts_with("https://") {
                links.insert(link.trim_end_matches(['.', ',', ';']).replace("&amp;", "&"));
            }
        }
    }
    let links: Vec<Value> = links.into_iter().map(|link| json!({ "URL": link, "StatusCode": 0, "Status": "not followed" })).collect();
    json!({ "Errors": 0, "Links": links })
}

/// What many mail programs do not show. (slug, title, what to look for)
const RULES: &[(&str, &str, &[&str])] = &[
    ("html-script", "<script>", &["<script"]),
    ("html-form", "<form>", &["<form"]),
    ("html-iframe", "<iframe>", &["<iframe"]),
    ("html-video", "<video>", &["<video"]),
    ("html-svg", "<svg>", &["<svg"]),
    ("html-link", "<link> to a style sheet", &["<link"]),
    ("css-display-flex", "display: flex", &["display:flex", "display: flex"]),
    ("css-display-grid", "display: grid", &["display:grid", "display: grid"]),
    ("css-position", "position", &["position:absolute", "position: absolute", "position:fixed", "position: fixed"]),
    ("css-background-image", "background-image", &["background-image"]),
    ("css-variables", "CSS variables", &["var(--"]),
];

/// Features that many mail programs lack, found by their names. No percentages of programs: oCore has no such data and invents none.
pub(crate) fn html_check(body: &Body) -> Value {
    let html = body.html.as_deref().unwrap_or_default().to_ascii_lowercase();
    let found = |signs: &[&str]| signs.iter().map(|sign| html.matches(sign).count()).sum::<usize>();
    let warnings: Vec<Value> = RULES
        .iter()
        .filter(|(_, _, signs)| found(signs) > 0)
        .map(|(slug, title, signs)| {
            json!({
                "Slug": slug, "Title": title, "Description": "many mail programs do not show this", "URL": "", "Category": slug.split('-').next(),
                "Tags": [], "Keywords": "", "Results": [], "NotesByNumber": {},
                "Score": { "Found": found(signs), "Supported": 0, "Partial": 0, "Unsupported": 0 },
            })
        })
        .collect();
    let total = json!({ "Tests": RULES.len(), "Nodes": html.matches('<').count(), "Supported": 0, "Partial": 0, "Unsupported": 0 });
    json!({ "Platforms": {}, "Total": total, "Warnings": warnings })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(html: &str, remote: bool) -> String {
        let inline = [
            ("logo@x".to_owned(), ("image/png".to_owned(), b"PNG".to_vec())),
            ("50%25+$&=1@x".to_owned(), ("image/gif".to_owned(), b"GIF".to_vec())),
            ("evil@x".to_owned(), ("image/svg+xml".to_owned(), b"<svg/>".to_vec())),
        ];
        page(&Body { html: Some(html.to_owned()), text: String::new(), inline: Arc::new(inline.into_iter().collect()) }, remote)
    }

    #[test]
    fn hostile_html_loses_its_teeth() {
        let hostile = r#"<script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)><animate onbegin=alert(1)></svg><iframe src="https://evil"></iframe>
            <form action="https://evil"><input name=password></form><a href="javascript:alert(1)">a</a><a href="data:text/html,<script>alert(1)</script>">b</a>
            <base href="https://evil/"><meta http-equiv=refresh content="0;url=https://evil"><link rel=stylesheet href=https://evil/a.css><style>*{background:url(https://evil/x)}</style>
            <div style="background:url(https://evil/track);position:fixed">x</div><math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>
            <object data="https://evil/x.swf"></object><embed src="https://evil"><video src="https://evil/v" poster="https://evil/p"></video><img srcset="https://evil/s 1x">"#;
        for remote in [false, true] {
            let page = shown(hostile, remote).to_ascii_lowercase();
            for sign in [
                "<script",
                "onerror=",
                "onload=",
                "onbegin=",
                "<svg",
                "<iframe",
                "<form",
                "<input",
                "javascript:",
                "data:text",
                "<base",
                "http-equiv",
                "<link",
                "<style",
                "url(",
                "position",
                "<object",
                "<embed",
                "<video",
                "srcset",
                "evil/track",
            ] {
                assert!(!page.contains(sign), "{sign} in {page}");
            }
        }
    }

    #[test]
    fn images_are_the_messages_own_unless_asked() {
        let html = r#"<img src="cid:logo@x"><img src="cid:evil@x"><img src="https://tracker.example/1.gif"><img src="data:image/svg+xml;base64,AA">"#;
        let (closed, open) = (shown(html, false), shown(html, true));
        assert!(closed.contains("data:image/png;base64,UE5H"), "{closed}");
        assert!(!closed.contains("tracker") && open.contains("https://tracker.example/1.gif"));
        assert!(!open.contains("svg"));
        assert!(has_remote(html));
    }

    #[test]
    fn a_content_id_is_found_in_every_spelling_of_its_address() {
        for source in ["cid:logo@x", "CID:logo@x", " Cid:logo%40x ", "cid:%6Cogo%40x"] {
            assert!(shown(&format!("<img src=\"{source}\">"), false).contains("data:image/png;base64,UE5H"), "{source}");
        }
        for source in ["cid:50%25+$&amp;=1@x", "cid:50%2525%2B%24%26%3D1%40x"] {
            assert!(shown(&format!("<img src=\"{source}\">"), false).contains("data:image/gif;base64,R0lG"), "{source}");
        }
        assert!(!shown("<img src=\"cid:logo%zz\"><img src=\"cid:\"><img src=\"cid:other\">", false).contains("data:"));
    }

    #[test]
    fn the_deepest_html_fits_the_smallest_stack() {
        // The catcher's threads have no more than this.
        let shown = std::thread::Builder::new().stack_size(512 << 10).spawn(|| {
            let deep = format!("{}deep{}", "<div><b><table><tr><td>".repeat(1000), "</td></tr></table></b></div>".repeat(1000));
            shown(&deep, false)
        });
        assert!(shown.unwrap().join().unwrap().contains("deep"));
    }

    #[test]
    fn html_that_would_take_for_ever_is_shown_as_text() {
        let body = Body { html: Some("<div><b>".repeat(500_000)), text: "the text".to_owned(), inline: Arc::default() };
        let page = page(&body, false);
        assert!(page.contains("too many elements") && !page.contains("<b>") && page.len() < 1000, "{page}");
    }

    #[test]
    fn links_are_listed_and_not_followed() {
        let body = Body {
            html: Some(r#"<a href="https://a.example/?x=1&amp;y=2">a</a>"#.to_owned()),
            text: "See http://b.example.".to_owned(),
            inline: Arc::default(),
        };
        let links = link_check(&body);
        assert_eq!(links["Links"][0]["URL"], "http://b.example");
        assert_eq!(links["Links"][0]["Status"], "not followed");
        assert_eq!(links["Links"][1]["URL"], "https://a.example/?x=1&y=2");
    }
}
