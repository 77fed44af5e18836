use super::*;
use crate::context::CertificateRecord;
use crate::{
    PeerIdentity, Presented, RequestInfo, SecretKind, SystemContext, TenantRecord, TokenRecord, mint,
};
use proptest::prelude::*;
use roadstead_domain::{FakeClock, SeededRandom};
use secrecy::ExposeSecret as _;
use std::fmt::Write as _;

fn tenant(seed: u64) -> TenantRecord {
    TenantRecord {
        id: TenantId::generate(&FakeClock::at(1), &SeededRandom::new(seed)),
        name: format!("tenant-{seed}"),
    }
}

fn holder(role: Role, scopes: &[Scope]) -> TenantContext {
    let (secret, hash) = mint(SecretKind::ApiToken, &SeededRandom::new(9));
    let presented = Presented::parse(SecretKind::ApiToken, secret.expose_secret()).expect("well-formed");
    let record = TokenRecord {
        id: TokenId::generate(&FakeClock::at(1), &SeededRandom::new(2)),
        tenant: tenant(1),
        name: "ci".into(),
        role,
        scopes: scopes.to_vec(),
        hash,
        expires_at_ms: 1,
        revoked: false,
    };
    TenantContext::from_api_token(&presented, Some(record), 0, RequestInfo::default()).expect("valid")
}

fn cluster_agent(cluster: ClusterId) -> TenantContext {
    let tenant = tenant(1);
    let peer = PeerIdentity {
        tenant: tenant.id,
        cluster,
        serial: "1".into(),
    };
    let record = CertificateRecord {
        tenant,
        cluster,
        serial: "1".into(),
        not_after_ms: 1,
        revoked: false,
        cluster_active: true,
    };
    TenantContext::from_cluster_certificate(&peer, Some(record), 0, RequestInfo::default()).expect("valid")
}

fn allowed(ctx: &TenantContext, action: Action, place: Place) -> bool {
    matches!(decide(ctx, action, &place), Decision::Allow { .. })
}

/// Every role, scope, task and the cluster agent, by every action.
#[test]
fn the_whole_matrix_is_as_agreed() {
    let place = tenant(1).id.place();
    let mut columns: Vec<(String, TenantContext, Place)> = Vec::new();
    for role in Role::ALL {
        columns.push((role.to_string(), holder(role, &[Scope::Admin]), place));
    }
    for scope in Scope::ALL {
        columns.push((format!("owner+{scope}"), holder(Role::Owner, &[scope]), place));
    }
    let cluster = ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(3));
    let own = Place {
        object: Object::Cluster(cluster),
        ..place
    };
    columns.push(("cluster:own".into(), cluster_agent(cluster), own));
    columns.push(("cluster:else".into(), cluster_agent(cluster), place));
    for task in SystemTask::ALL {
        let system = SystemContext::new(task);
        let ctx = TenantContext::from_system_task(&system, tenant(1), RequestInfo::default());
        columns.push((format!("sys:{}", task.name()), ctx, place));
    }
    let mut table = format!("{:20}", "");
    for (name, ..) in &columns {
        write!(table, " {name}").expect("to a string");
    }
    for action in Action::ALL {
        write!(table, "\n{:20}", action.as_str()).expect("to a string");
        for (name, ctx, place) in &columns {
            let mark = if allowed(ctx, action, *place) { "yes" } else { "-" };
            write!(table, " {mark:width$}", width = name.len()).expect("to a string");
        }
    }
    let trimmed: Vec<&str> = table.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(trimmed.join("\n"));
}

#[test]
fn s33_nobody_may_do_anything_in_another_tenant() {
    let foreign = tenant(2).id.place();
    let cluster = ClusterId::generate(&FakeClock::at(1), &SeededRandom::new(3));
    let system = SystemContext::new(SystemTask::Bootstrap);
    let contexts = [
        holder(Role::Owner, &Scope::ALL),
        cluster_agent(cluster),
        TenantContext::from_system_task(&system, tenant(1), RequestInfo::default()),
    ];
    for ctx in &contexts {
        for action in Action::ALL {
            assert!(!allowed(ctx, action, foreign));
            assert!(!allowed(
                ctx,
                action,
                Place {
                    object: Object::Cluster(cluster),
                    ..foreign
                }
            ));
        }
        let denied = ctx
            .authorize::<act::Write, _>(foreign)
            .expect_err("another tenant's");
        assert!(matches!(denied.into_error("project x"), Error::NotFound { .. }));
    }
}

#[test]
fn what_may_be_seen_but_not_touched_is_forbidden() {
    let ctx = holder(Role::Viewer, &[Scope::Admin]);
    let denied = ctx
        .authorize::<act::Write, _>(ctx.tenant())
        .expect_err("a viewer");
    assert!(denied.reason().contains("needs the role editor"));
    assert!(matches!(denied.into_error("it"), Error::Forbidden { .. }));
}

proptest! {
    /// More role and more scopes never allow less.
    #[test]
    fn rights_only_grow(role in 0_usize..4, scopes in proptest::collection::vec(0_usize..5, 0..4), more in 0_usize..5) {
        let scopes: Vec<Scope> = scopes.into_iter().map(|i| Scope::ALL[i]).collect();
        let mut wider = scopes.clone();
        wider.push(Scope::ALL[more]);
        let place = tenant(1).id.place();
        for action in Action::ALL {
            if allowed(&holder(Role::ALL[role], &scopes), action, place) {
                prop_assert!(allowed(&holder(Role::ALL[role + 1], &scopes), action, place));
                prop_assert!(allowed(&holder(Role::ALL[role], &wider), action, place));
            }
        }
    }
}
