use crate::support::{TestEdge, Upstream, serving};

/// As bytes on the wire: no client tidies them up on the way.
#[tokio::test]
async fn the_database_manager_is_closed_in_all_its_spellings() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    for target in [
        "/web/database",
        "/web/database/",
        "/web/database/manager",
        "/web/database/manager?debug=1",
        "//web/database/manager",
        "/web//database/backup",
        "/web/./database/drop",
        "/web/x/../database/restore",
        "/web/%64atabase/manager",
        "/web%2fdatabase/manager",
        "/%77eb/database",
        "/web/%2564atabase",
        "/WEB/DATABASE/manager",
        "/en/web/database/selector",
        "http://shop.example//web/database",
    ] {
        for method in ["GET", "POST"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let answer = edge.raw(request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{method} {target}: {answer}");
        }
    }
    assert_eq!(shop.seen(), Vec::<String>::new());

    for path in ["/web/login", "/web/databases", "/web/dataset/call_kw/x/y", "/web/content/database", "/jsonrpc"] {
        assert_eq!(edge.get("shop.example", path).await.status, 200, "{path}");
    }
}
