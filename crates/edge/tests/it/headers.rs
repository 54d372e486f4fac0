use crate::support::{TestEdge, Upstream, echoed, request, serving};

#[tokio::test]
async fn odoo_learns_the_client_from_the_edge_alone() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let lies = [
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "203.0.113.9"),
        ("forwarded", "for=203.0.113.9"),
        ("x_forwarded_for", "203.0.113.9"),
        ("connection", "x-forwarded-proto, x-named"),
        ("x-named", "hop"),
    ];
    let echo = edge.send(request("GET", "shop.example:8080", "/web", &lies, "")).await.json();
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop.example:8080"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "8080"),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1;host=\"shop.example:8080\";proto=http"),
        ("host", "shop.example:8080"),
    ] {
        assert_eq!(echoed(&echo, name), [value], "{name}");
    }
    for gone in ["x_forwarded_for", "x-named", "connection"] {
        assert!(echoed(&echo, gone).is_empty(), "{gone}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_speaks_for_its_clients() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]).await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let words =
        [("x-forwarded-for", "6.6.6.6, 203.0.113.9, 127.0.0.7"), ("x-forwarded-host", "shop.example"), ("x-forwarded-proto", "https")];
    let echo = edge.send(request("GET", "inner.example", "/web", &words, "")).await.json();
    assert_eq!(echoed(&echo, "x-forwarded-for"), ["203.0.113.9"]);
    assert_eq!(echoed(&echo, "x-forwarded-proto"), ["https"]);
    assert_eq!(echoed(&echo, "x-forwarded-port"), ["443"]);
    assert_eq!(echoed(&echo, "host"), ["shop.example"]);
}

#[tokio::test]
async fn every_request_has_an_id_on_both_sides() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;

    let answer = edge.get("shop.example", "/").await;
    let made = answer.header("x-request-id").to_owned();
    assert_eq!(echoed(&answer.json(), "x-request-id"), [made.as_str()]);
    assert_ne!(edge.get("shop.example", "/").await.header("x-request-id"), made);

    let answer = edge.send(request("GET", "shop.example", "/", &[("x-request-id", "trace-0001")], "")).await;
    assert_eq!(answer.header("x-request-id"), "trace-0001");
    let answer = edge.send(request("GET", "shop.example", "/", &[("x-request-id", "\"><script>")], "")).await;
    assert!(!answer.header("x-request-id").contains('<'));
    let own = edge.send(request("GET", "nobody.example", "/", &[("x-request-id", "trace-0002")], "")).await;
    assert_eq!(own.header("x-request-id"), "trace-0002");
}

#[tokio::test]
async fn a_head_request_keeps_the_length_and_has_no_body() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let answer = edge.send(request("HEAD", "shop.example", "/", &[], "")).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert!(answer.header("content-length").parse::<u64>().unwrap() > 0);
    let own = edge.send(request("HEAD", "nobody.example", "/", &[], "")).await;
    assert_eq!((own.status.as_u16(), own.body.len()), (404, 0));
    assert!(own.header("content-length").parse::<u64>().unwrap() > 0);
}
