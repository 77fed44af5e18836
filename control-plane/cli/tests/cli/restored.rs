//! What an operator sees and types after the hub's database was restored from a backup.

use super::{Exit, Hub, User, page};
use serde_json::{Value, json};

fn cluster() -> Value {
    json!({"id": "cls_1", "name": "edge-1", "labels": {"region": "eu"}, "state": "CONNECTED",
        "since": "2026-01-02T11:59:30Z", "lastSeenAt": "2026-01-02T11:59:30Z", "version": "0.1.0", "agentCount": 2,
        "wantedRevision": 12, "persistedRevision": 12, "appliedRevision": 12, "heldDeletes": 14,
        "timeline": {"cursor": 40, "known": true, "sent": 1, "deletes": 2, "deleted": ["agt_c", "pmt_x"],
            "replaced": [{"document": "agt_a", "revision": 3}]},
        "unknownCertificates": [{"serial": "0a0b", "seenAt": "2026-01-02T11:00:00Z",
            "expiresAt": "2026-01-05T00:00:00Z"}],
        "certificateExpiresAt": "2026-01-04T00:00:00Z"})
}

fn hub_with(hub: &Hub, cluster: &Value) {
    hub.graphql(
        "Clusters",
        json!({"clusters": page(std::slice::from_ref(cluster))}),
    );
    hub.graphql("ClusterByName", json!({"clusterByName": cluster}));
}

#[tokio::test]
async fn the_list_says_that_something_waits_and_what_to_type() {
    let hub = Hub::start().await;
    hub_with(&hub, &cluster());
    let left = User::of(&hub).runs("clusters").await;
    insta::assert_snapshot!(format!("{}{}", left.out, left.err), @r"
    NAME    STATE      LAST SEEN  AGENTS  REVISION  HELD                                    VERSION  LABELS
    edge-1  connected  30s ago    2       12        14 deletes, revision 40, 1 certificate  0.1.0    region=eu
    note: 14 deletions wait on edge-1, more than its budget: look what is to go, then roadstead clusters approve-deletes edge-1 --deletes 14
    note: edge-1 is at revision 40, and the hub's database, which is of an older time, at 12: roadstead describe cluster edge-1 shows what would change; nothing is sent until a person accepts it
    note: edge-1 presents a certificate that the hub's database does not know (serial 0a0b): roadstead describe cluster edge-1
    ");
}

#[tokio::test]
async fn the_page_of_a_cluster_shows_what_would_change_by_name() {
    let hub = Hub::start().await;
    hub_with(&hub, &cluster());
    // What the hub knows by that id; what it does not know; an agent.
    hub.graphql("Node", json!({"node": {"project": "support", "name": "c"}}));
    hub.graphql("Node", json!({"node": null}));
    hub.graphql(
        "Node",
        json!({"node": {"kind": "PROMPT", "project": "support", "name": "a"}}),
    );
    let mut user = User::of(&hub);
    insta::assert_snapshot!(user.runs("describe cluster edge-1").await.out, @r"
    Kind        Cluster
    Name        edge-1
    Id          cls_1
    State       connected
    Last seen   2026-01-02T11:59:30Z (30s ago)
    Version     0.1.0
    Labels      region=eu
    Agents      2
    Revision    12
    Certificate until 2026-01-04T00:00:00Z

    Waits for a person
      14 deletions, more than the cluster's budget; where they are meant:
        roadstead clusters approve-deletes edge-1 --deletes 14
      edge-1 is at revision 40, and the hub's database, which is of an older time, at 12; nothing is sent until a person accepts the hub's view.
      Accepted, the hub's view goes on over it: 1 document is sent, 2 deleted, 1 replaced
        deleted there: Agent support/c (agt_c)
        deleted there: pmt_x
        replaced there: Prompt support/a (agt_a), revision 3
      Where that is right:
        roadstead clusters accept-timeline edge-1 --cursor 40
      Certificate 0a0b, of the hub's own authority and not in its database; first seen 2026-01-02T11:00:00Z, ends 2026-01-05T00:00:00Z.
      Where it is the cluster's own (roadstead-agent doctor there names its serial), else revoke it:
        roadstead clusters admit-certificate edge-1 --serial 0a0b
        roadstead clusters revoke edge-1 --serial 0a0b
    ");
    let value: Value = serde_json::from_str(&user.runs("describe cluster edge-1 -o json").await.out).unwrap();
    assert_eq!(
        (
            &value["timeline"]["cursor"],
            &value["unknownCertificates"][0]["serial"]
        ),
        (&json!(40), &json!("0a0b"))
    );
    let left = user.runs("describe cluster web/edge-1").await;
    assert_eq!(left.exit, Exit::Usage, "{}", left.err);
    assert!(
        left.err.contains("next: roadstead describe cluster edge-1"),
        "{}",
        left.err
    );
}

#[tokio::test]
async fn a_cluster_on_which_nothing_waits_has_a_page_too() {
    let hub = Hub::start().await;
    let plain = json!({"id": "cls_1", "name": "edge-1", "labels": {}, "state": "NEVER_SEEN",
        "since": "2026-01-02T11:00:00Z"});
    hub.graphql("ClusterByName", json!({"clusterByName": plain}));
    hub.graphql("ClusterByName", json!({"clusterByName": null}));
    let mut user = User::of(&hub);
    let left = user.runs("describe cluster edge-1").await;
    assert!(
        left.out.contains("State       never seen\n") && !left.out.contains("Waits"),
        "{}",
        left.out
    );
    let left = user.runs("describe cluster edge-2").await;
    assert_eq!(left.exit, Exit::NotFound, "{}", left.err);
}

#[tokio::test]
async fn a_difference_that_is_not_known_yet_cannot_be_accepted_by_its_page() {
    let hub = Hub::start().await;
    let mut held = cluster();
    held["timeline"] =
        json!({"cursor": 40, "known": false, "sent": 0, "deletes": 0, "deleted": [], "replaced": []});
    hub_with(&hub, &held);
    let left = User::of(&hub).runs("describe cluster edge-1").await;
    assert!(
        left.out
            .contains("is not known until its cluster agent is connected"),
        "{}",
        left.out
    );
    assert!(!left.out.contains("accept-timeline"), "{}", left.out);
}

#[tokio::test]
async fn a_decision_names_what_was_seen() {
    let hub = Hub::start().await;
    hub_with(&hub, &cluster());
    hub.graphql("AcceptTimeline", json!({"acceptTimeline": {"errors": []}}));
    hub.graphql(
        "AdmitClusterCertificate",
        json!({"admitClusterCertificate": {"errors": []}}),
    );
    let mut user = User::of(&hub);
    // Neither number nor serial is guessed.
    for verb in ["accept-timeline edge-1", "admit-certificate edge-1"] {
        assert_eq!(user.runs(&format!("clusters {verb}")).await.exit, Exit::Usage);
    }
    let left = user.runs("clusters accept-timeline edge-1 --cursor 40").await;
    assert_eq!(
        left.out,
        "cluster edge-1: the hub's view goes on over revision 40: 1 document is sent, 2 deleted, 1 replaced\n",
        "{}",
        left.err
    );
    let left = user
        .runs("clusters admit-certificate edge-1 --serial 0a0b -o json")
        .await;
    let value: Value = serde_json::from_str(&left.out).unwrap();
    assert_eq!(
        value,
        json!({"cluster": "edge-1", "id": "cls_1", "done": "certificate 0a0b admitted"})
    );
    let asked = hub.asked();
    let input = |n: usize| {
        let mut input = asked[n].1["input"].clone();
        assert!(input["idempotencyKey"].is_string());
        input.as_object_mut().unwrap().remove("idempotencyKey");
        input
    };
    assert_eq!(input(1), json!({"cluster": "cls_1", "cursor": 40}));
    assert_eq!(input(3), json!({"cluster": "cls_1", "serial": "0a0b"}));
}

#[tokio::test]
async fn a_refused_decision_says_where_to_look() {
    let hub = Hub::start().await;
    hub_with(&hub, &cluster());
    let refused = |code: &str, message: &str| json!({"errors": [{"code": code, "message": message}]});
    let elsewhere = "the cluster edge-1 is at revision 41, not 40: look again and accept that";
    hub.graphql(
        "AcceptTimeline",
        json!({"acceptTimeline": refused("CONFLICT", elsewhere)}),
    );
    hub.graphql(
        "AdmitClusterCertificate",
        json!({"admitClusterCertificate": refused("NOT_FOUND", "an unknown certificate 0c of cls_1 was not found")}),
    );
    hub.graphql(
        "ApproveDeletes",
        json!({"approveDeletes": refused("FORBIDDEN", "no")}),
    );
    let mut user = User::of(&hub);
    let left = user.runs("clusters accept-timeline edge-1 --cursor 40").await;
    assert_eq!(left.exit, Exit::Conflict);
    assert!(
        left.err.contains("at revision 41") && left.err.contains("nothing was done"),
        "{}",
        left.err
    );
    assert!(
        left.err.contains("next: roadstead describe cluster edge-1"),
        "{}",
        left.err
    );
    let left = user.runs("clusters admit-certificate edge-1 --serial 0c").await;
    assert_eq!(left.exit, Exit::NotFound);
    assert!(
        left.err.contains("next: roadstead describe cluster edge-1"),
        "{}",
        left.err
    );
    let left = user.runs("clusters approve-deletes edge-1 --deletes 14").await;
    assert_eq!(left.exit, Exit::Forbidden);
    assert!(left.err.contains("next: ask an administrator"), "{}", left.err);
}
