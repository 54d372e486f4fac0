use ocore_edge::{EdgeConfig, EdgeError};
use ocore_host::{EdgeClient, HostError};
use ocore_model::route::{RouteSnapshot, RouteState};
use tokio_util::sync::CancellationToken;

use crate::support::{Client, EdgeProcess, TestEdge, Upstream, request, route, serving};

#[tokio::test]
async fn a_request_goes_where_its_host_leads() {
    let (shop, blog) = (Upstream::start("shop").await, Upstream::start("blog").await);
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example", "www.shop.example"], shop.address), serving(&["blog.example", "::1"], blog.address)])
        .await;

    for (host, upstream) in [
        ("shop.example", "shop"),
        ("SHOP.example", "shop"),
        ("shop.example.", "shop"),
        ("www.shop.example:8080", "shop"),
        ("blog.example", "blog"),
        ("[::1]:8080", "blog"),
        ("[0:0::1]", "blog"),
    ] {
        assert_eq!(edge.get(host, "/web").await.json()["upstream"], upstream, "{host}");
    }
}

#[tokio::test]
async fn the_target_of_an_absolute_request_wins_over_its_host_header() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;

    let answer = edge.send(request("GET", "other.example", "http://shop.example/web?a=1", &[], "")).await.json();
    assert_eq!(answer["target"], "/web?a=1");
    assert!(answer["headers"].as_array().unwrap().iter().any(|pair| pair[0] == "host" && pair[1] == "shop.example"));
    let raw = edge.raw(b"GET http://shop.example/x HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n").await;
    assert!(raw.starts_with("HTTP/1.1 400 "), "{raw}");
}

#[tokio::test]
async fn a_host_that_nobody_has_is_not_found() {
    let edge = TestEdge::start().await;
    assert_eq!(edge.get("nobody.example", "/").await.status, 404);
    edge.apply(1, vec![]).await;
    let answer = edge.get("nobody.example", "/").await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("nobody.example"));
    assert_eq!(edge.status().await.unknown_host_requests, 2);
}

#[tokio::test]
async fn a_lower_generation_never_replaces_a_higher_one() {
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    let edge = TestEdge::start().await;
    let older = RouteSnapshot { generation: 7, routes: vec![serving(&["shop.example"], old.address)] };
    let newer = RouteSnapshot { generation: 8, routes: vec![serving(&["shop.example"], new.address)] };
    assert_eq!(edge.admin.apply_routes(&older).await.unwrap(), 7);
    assert_eq!(edge.admin.apply_routes(&newer).await.unwrap(), 8);

    let refused = edge.admin.apply_routes(&older).await.unwrap_err();
    assert!(matches!(refused, HostError::Fenced { held: 7, newest: 8 }), "{refused:?}");
    assert_eq!(edge.get("shop.example", "/").await.json()["upstream"], "new");

    // The same again is done, in any order; other routes under the same number are not.
    assert_eq!(edge.admin.apply_routes(&newer).await.unwrap(), 8);
    let other = RouteSnapshot { generation: 8, ..older };
    let refused = edge.admin.apply_routes(&other).await.unwrap_err();
    assert!(refused.to_string().contains("raise the generation"), "{refused}");
    assert_eq!(edge.get("shop.example", "/").await.json()["upstream"], "new");
    assert_eq!(edge.admin.routes().await.unwrap(), newer);
}

#[tokio::test]
async fn a_bad_host_name_is_left_out_and_keeps_no_other_route_from_changing() {
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    let edge = TestEdge::start().await;
    let (older, younger) = (serving(&["shop.example"], old.address), serving(&["SHOP.example.", "blog.example", "a/b"], new.address));
    assert!(older.instance_id < younger.instance_id);
    edge.apply(1, vec![younger, older]).await;
    assert_eq!(edge.get("shop.example", "/").await.json()["upstream"], "old", "a younger instance takes no name away");
    assert_eq!(edge.get("blog.example", "/").await.json()["upstream"], "new");
}

#[tokio::test]
async fn what_is_no_snapshot_changes_nothing() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let refused = edge.administer(request("PUT", "edge", "/routes", &[], "{\"generation\": 2, \"routes\": [{}]}")).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["generation"], 1);
    assert_eq!(edge.status().await.generation, 1);
    assert_eq!(edge.get("shop.example", "/").await.status, 200);
}

#[tokio::test]
async fn an_edge_that_starts_alone_serves_by_its_stored_routes() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(41, vec![]).await;
    edge.apply(42, vec![serving(&["shop.example"], shop.address), route(&["b.example"], RouteState::Stopped)]).await;
    let directory = edge.stop().await;

    let edge = TestEdge::start_in(directory, |_| {}).await;
    assert_eq!(edge.status().await.generation, 42);
    assert_eq!(edge.get("shop.example", "/").await.json()["upstream"], "shop");
    assert_eq!(edge.get("b.example", "/").await.status, 503);
    let older = edge.admin.apply_routes(&RouteSnapshot { generation: 41, routes: vec![] }).await.unwrap_err();
    assert!(matches!(older, HostError::Fenced { .. }), "{older:?}");

    // A torn file is ignored, the one before it used.
    let directory = edge.stop().await;
    let stored = std::fs::read(directory.path().join("routes.json")).unwrap();
    std::fs::write(directory.path().join("routes.json"), &stored[..stored.len() - 7]).unwrap();
    let edge = TestEdge::start_in(directory, |_| {}).await;
    assert_eq!(edge.status().await.generation, 41);
}

#[tokio::test]
async fn routes_that_cannot_be_stored_are_in_force_and_stored_later() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![]).await;
    // A directory in its place cannot be renamed over by a file, not even by root.
    let file = edge.directory.path().join("routes.json");
    let previous = edge.directory.path().join("routes.json.previous");
    std::fs::create_dir_all(previous.join("in the way")).unwrap();
    edge.apply(2, vec![serving(&["shop.example"], shop.address)]).await;
    assert_eq!(edge.get("shop.example", "/").await.status, 200);
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"generation\":1"));

    std::fs::remove_dir_all(&previous).unwrap();
    edge.apply(2, edge.admin.routes().await.unwrap().routes).await;
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"generation\":2"));
}

#[tokio::test]
async fn the_administration_socket_says_what_is_wrong_and_is_private() {
    let edge = TestEdge::start().await;
    let socket = edge.directory.path().join("edge.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let nobody = EdgeClient::new(edge.directory.path().join("nobody.sock"));
    let error = nobody.status().await.unwrap_err();
    assert!(error.to_string().contains("start it with `ocore edge`"), "{error}");

    // A second edge with the same socket is refused and does no harm.
    let config = EdgeConfig::new(vec!["127.0.0.1:0".parse().unwrap()], &socket, edge.directory.path().join("routes.json"));
    let refused = ocore_edge::run(config, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(refused, EdgeError::AlreadyRunning { .. }), "{refused:?}");
    assert_eq!(edge.status().await.generation, 0);

    let taken = EdgeConfig::new(vec![edge.address], edge.directory.path().join("other.sock"), edge.directory.path().join("routes.json"));
    let refused = ocore_edge::run(taken, CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains(&edge.address.to_string()), "{refused}");
}

#[tokio::test]
async fn metrics_tell_what_passed_in_prometheus_form() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(3, vec![serving(&["shop.example"], shop.address)]).await;
    assert_eq!(edge.get("shop.example", "/").await.status, 200);
    assert_eq!(edge.get("nobody.example", "/").await.status, 404);

    let text = edge.administer(request("GET", "edge", "/metrics", &[], "")).await.text();
    for line in [
        "ocore_edge_requests_total{status=\"2xx\"} 1",
        "ocore_edge_requests_total{status=\"4xx\"} 1",
        "ocore_edge_routes 1",
        "ocore_edge_routes_generation 3",
        "ocore_edge_request_seconds_count 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    assert_eq!(edge.administer(request("GET", "edge", "/healthz", &[], "")).await.status, 200);
}

#[tokio::test]
async fn an_edge_that_was_killed_serves_on_by_its_last_routes() {
    let shop = Upstream::start("shop").await;
    let directory = tempfile::tempdir().unwrap();
    let admin = EdgeClient::new(directory.path().join("edge.sock"));
    let mut generation = 0;
    for _ in 0..3 {
        let process = EdgeProcess::start(directory.path());
        assert_eq!(admin.status().await.unwrap().generation, generation);
        if generation > 0 {
            let mut client = Client::connect(process.address).await;
            assert_eq!(client.send(request("GET", "shop.example", "/", &[], "")).await.unwrap().status, 200);
        }
        for _ in 0..5 {
            generation += 1;
            let snapshot = RouteSnapshot { generation, routes: vec![serving(&["shop.example"], shop.address)] };
            assert_eq!(admin.apply_routes(&snapshot).await.unwrap(), generation);
        }
        drop(process);
    }
}
