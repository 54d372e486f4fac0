//! Requests that no browser writes and Odoo takes, and what is said of those that nobody can read.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{PATIENCE, TestEdge, Upstream, access_log_of, echoed, request, serving};

/// One that answers everything with what it was asked.
async fn shop() -> (Upstream, TestEdge) {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    (shop, edge)
}

/// The echoes in a stream of answers, in their order.
fn echoes(answers: &str) -> Vec<Value> {
    answers
        .split("HTTP/1.1 200 OK\r\n")
        .skip(1)
        .map(|answer| serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
        .collect()
}

fn targets(answers: &str) -> Vec<String> {
    echoes(answers).iter().map(|echo| echo["target"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_address_that_is_not_encoded_reaches_odoo() {
    let (_shop, edge) = shop().await;
    for (target, reaches) in [
        (&br#"/web/login?filter=[["name","=","x"]]"#[..], "/web/login?filter=[[%22name%22,%22=%22,%22x%22]]"),
        (b"/web/login?filter={a:[1|2]}^\\", "/web/login?filter={a:[1|2]}^\\"),
        (b"/web/login?date=>2026-01-01&to=<2026-02-01", "/web/login?date=%3E2026-01-01&to=%3C2026-02-01"),
        ("/web/login?name=Éloïse".as_bytes(), "/web/login?name=%C3%89lo%C3%AFse"),
        (b"/web/login?name=\xc9lo\xefse", "/web/login?name=%C9lo%EFse"),
        (b"/web/login/`x`", "/web/login/%60x%60"),
        (b"/web/login/\"x\"", "/web/login/%22x%22"),
        (b"/caf\xe9/<b>?q=100%&r=%22", "/caf%E9/%3Cb%3E?q=100%&r=%22"),
        (b"http://shop.example/a?b=\"c\"", "/a?b=%22c%22"),
        (b"/a?b=\"#c\"", "/a?b=%22"),
    ] {
        for (method, version) in [("GET", "1.1"), ("HEAD", "1.1"), ("POST", "1.1"), ("GET", "1.0")] {
            let head = format!(" HTTP/{version}\r\nHost: shop.example\r\nConnection: close\r\nContent-Length: 0\r\nX: <\"`>\r\n\r\n");
            let answer = edge.raw(&[method.as_bytes(), b" ", target, head.as_bytes()].concat()).await;
            assert!(answer.contains(" 200 "), "{method} {reaches}: {answer}");
            if method != "HEAD" {
                let echo = echoes(&answer.replace("HTTP/1.0 ", "HTTP/1.1 ")).remove(0);
                assert_eq!(echo["target"], reaches);
                assert_eq!(echoed(&echo, "x"), ["<\"`>"]);
            }
        }
    }
}

/// Bodies and what comes behind them stay what they are, in whatever pieces it all arrives.
#[tokio::test]
async fn only_the_addresses_change_in_a_stream_of_requests() {
    let (shop, edge) = shop().await;
    let hidden = "GET /<hidden> HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let host = "Host: shop.example\r\n";
    let stream = [
        format!("GET /<1> HTTP/1.1\r\n{host}\r\n"),
        format!("\r\nPOST /\"2\" HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("POST /`3 HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n2\r\n<>\r\n0\r\n\r\n", hidden.len()),
        format!("PUT /<4> HTTP/1.1\r\n{host}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n<>"),
        format!("GET /websocket?<5> HTTP/1.1\r\n{host}Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        "GET /?é=6 HTTP/1.1\nHost: shop.example\nConnection: close\n\n".to_owned(),
    ];
    // Odoo (here one that knows no websockets) has answered the handshake before the next request is sent.
    let (first, last) = (stream[..5].concat(), stream[5].clone());
    for size in [100_000, 61, 7, 1] {
        let mut connection = TcpStream::connect(edge.address).await.unwrap();
        connection.set_nodelay(true).unwrap();
        let mut answers = Vec::new();
        for piece in first.as_bytes().chunks(size) {
            connection.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let reads = async {
            while String::from_utf8_lossy(&answers).matches("HTTP/1.1 200 OK").count() < 5 {
                assert_ne!(connection.read_buf(&mut answers).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answers));
            }
            connection.write_all(last.as_bytes()).await.unwrap();
            connection.read_to_end(&mut answers).await.unwrap();
        };
        tokio::time::timeout(PATIENCE, reads).await.unwrap();
        let answers = String::from_utf8(answers).unwrap().replace("HTTP/1.1 100 Continue\r\n\r\n", "");
        let echoes = echoes(&answers);
        let targets: Vec<&str> = echoes.iter().map(|echo| echo["target"].as_str().unwrap()).collect();
        assert_eq!(targets, ["/%3C1%3E", "/%222%22", "/%603", "/%3C4%3E", "/websocket?%3C5%3E", "/?%C3%A9=6"], "in pieces of {size}");
        assert_eq!(echoes[1]["body"], hidden);
        assert_eq!(echoes[2]["body"], format!("{hidden}<>"));
        assert_eq!(echoes[3]["body"], "<>");
    }
    assert!(!shop.seen().iter().any(|seen| seen.contains("hidden")), "{:?}", shop.seen());
}

/// The edge's own reading of a stream must never put an end where hyper sees none: then nothing is touched any more, and what is refused has words.
#[tokio::test]
async fn what_only_looks_like_the_next_address_is_left_alone() {
    let (shop, edge) = shop().await;
    let next = "GET /<next> HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
    let chunked = |body: &str| format!("POST /a HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}{next}");
    for (name, sent) in [
        ("an extension", chunked("5;x=<y>\r\nhello\r\n0\r\n\r\n")),
        ("a trailer", chunked("5\r\nhello\r\n0\r\nX: <y>\r\n\r\n")),
        ("a space behind the size", chunked("5 \r\nhello\r\n0\r\n\r\n")),
    ] {
        let answer = edge.raw(sent.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"body\":\"hello\""), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 400 ").count(), 1, "{name}: {answer}");
    }
    let plain = format!("{}{}", chunked("5;x\r\nhello\r\n0\r\n\r\n").replace(next, ""), next.replace("<next>", "next"));
    assert_eq!(targets(&edge.raw(plain.as_bytes()).await), ["/a", "/next"]);
    assert!(!shop.seen().iter().any(|seen| seen.contains('<') || seen.contains('%')), "{:?}", shop.seen());
}

#[tokio::test]
async fn every_refusal_has_words_an_id_and_a_line_in_the_log() {
    let client = [127, 0, 0, 78];
    let log = access_log_of(client);
    let (shop, edge) = shop().await;
    let host = "Host: shop.example\r\n";
    let attempts = [
        (format!("GET /a b?token=secret HTTP/1.1\r\n{host}\r\n"), 400, "%20", "method=GET host=\"shop.example\" path=\"/a\""),
        (format!("GET /\u{7f} HTTP/1.1\r\n{host}\r\n"), 400, "understood", "host=\"shop.example\""),
        (format!("GET /a\t HTTP/1.1\r\n{host}\r\n"), 400, "understood", "host=\"shop.example\""),
        (format!("GET /a HTTP/1.1\r\n{host}Bad Name: x\r\n\r\n"), 400, "understood", "path=\"/a\""),
        (format!("GET /a HTTP/1.1\r\n{host}X: a\0b\r\n\r\n"), 400, "understood", "path=\"/a\""),
        (format!("POST /a HTTP/1.1\r\n{host}Content-Length: five\r\n\r\nhello"), 400, "understood", "method=\"POST\""),
        (format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\n{}", "x".repeat(300_000)), 400, "understood", "path=\"/a\""),
        (format!("GET /a HTTP/3.0\r\n{host}\r\n"), 505, "Version 1.1", "path=\"/a\""),
        (format!("GET /a?secret\r\n{host}\r\n"), 400, "understood", "path=\"/a\""),
        (format!("G<T /a HTTP/1.1\r\n{host}\r\n"), 400, "understood", "path=\"/a\""),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\r\n".to_owned(), 400, "encrypted", "path=\"\""),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505, "Version 1.1", "method=\"PRI\""),
        (format!("GET /a HTTP/1.1\r\n{host}{}\r\n", "X: y\r\n".repeat(200)), 431, "100 headers", "path=\"/a\""),
        (format!("GET /{} HTTP/1.1\r\n{host}\r\n", "\"".repeat(40_000)), 431, "32 KiB", "path=\"/%22"),
        (format!("GET /a HTTP/1.1\r\n{host}Host: other.example\r\n\r\n"), 400, "more than one host", "path=\"/a\""),
        ("GET /a HTTP/1.1\r\n\r\n".to_owned(), 400, "no host", "path=\"/a\""),
    ];
    for (attempt, status, words, _) in &attempts {
        let attempt_name = &attempt[..attempt.len().min(60)];
        let answer = edge.raw_from(client, attempt.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{attempt_name:?}: {answer}");
        let id = answer.split("x-request-id: ").nth(1).unwrap_or_else(|| panic!("{attempt_name:?} has no id: {answer}"));
        let id = id.lines().next().unwrap();
        assert!(answer.contains(words) && answer.matches(id).count() == 2, "{attempt_name:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{attempt_name:?}: {answer}");
    }
    // A program reads what it asks for, and finds its own id.
    let answer = edge
        .raw_from(client, format!("HEAD /a b HTTP/1.1\r\n{host}Accept: application/json\r\nX-Request-Id: trace-0001\r\n\r\n").as_bytes())
        .await;
    assert!(answer.contains("x-request-id: trace-0001\r\n") && answer.contains("application/problem+json"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "a HEAD has no body: {answer}");
    edge.stop().await;
    let lines = log();
    assert_eq!(lines.len(), attempts.len() + 1, "{lines:#?}");
    for (line, (attempt, status, _, known)) in lines.iter().zip(&attempts) {
        let known = known.replace("method=GET", "method=\"GET\"");
        assert!(line.contains(&format!("status={status} ")) && line.contains(&known), "{:?}: {line}", &attempt[..attempt.len().min(60)]);
        assert!(!line.contains("secret"), "{line}");
    }
    assert_eq!(shop.seen(), Vec::<String>::new());
}

/// An answer before stays whole, also when it is slow to be read, and when its end looks like hyper's own refusal.
#[tokio::test]
async fn a_refusal_behind_other_answers_takes_nothing_from_them() {
    let (_shop, edge) = shop().await;
    let bare = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let body = bare.repeat(20_000);
    let stream = format!(
        "POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {}\r\n\r\n{body}GET /b HTTP/1.1\r\nHost: shop.example\r\n\r\nGET / /c HTTP/1.1\r\n\r\n",
        body.len()
    );
    for pause in [0, 300] {
        let mut connection = TcpStream::connect(edge.address).await.unwrap();
        connection.write_all(stream.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let mut answers = Vec::new();
        tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answers)).await.unwrap().unwrap();
        let answers = String::from_utf8(answers).unwrap();
        let [first, rest] = answers.split("HTTP/1.1 200 OK\r\n").skip(1).collect::<Vec<_>>()[..] else { panic!("{answers}") };
        assert!(first.contains(&format!("\"length\":{}", body.len())), "{first}");
        assert!(rest.contains("\"target\":\"/b\"") && rest.contains("HTTP/1.1 400 ") && rest.contains("%20"), "{rest}");
    }
}

#[tokio::test]
async fn cookies_in_two_lines_reach_odoo_in_one() {
    let (_shop, edge) = shop().await;
    let echo = edge
        .send(request("GET", "shop.example", "/web", &[("cookie", "frontend_lang=en_US"), ("cookie", "session_id=abc")], ""))
        .await
        .json();
    assert_eq!(echoed(&echo, "cookie"), ["frontend_lang=en_US; session_id=abc"]);
}
