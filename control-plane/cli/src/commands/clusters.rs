//! `clusters`: where agents can run, and how a cluster comes and goes.

use super::{idempotency_key, secret, waiting};
use crate::{
    api::{Cluster, ClusterPayload, RevokedPayload},
    args::{
        ClusterAccept, ClusterAdmit, ClusterCreate, ClusterRevoke, Clusters, ClustersCommand, Common, Format,
        JoinPlace,
    },
    client::{Client, error_line},
    failure::{Exit, Failure, Outcome},
    render::{self, Table, age, time},
    secret_file::SecretFile,
    shell::Shell,
    text::line,
};
use roadstead_contract::documents::Name;
use serde_json::json;
use std::{collections::BTreeMap, io::Write as _};

/// Most clusters that are listed.
const MOST: usize = 10_000;
/// The fleet port of a hub that was told nothing else.
const FLEET_PORT: u16 = 8443;

pub(super) async fn run(client: &Client, common: &Common, args: Clusters, shell: &mut Shell) -> Outcome<()> {
    match args.command {
        None | Some(ClustersCommand::List) => list(client, common, shell).await,
        Some(ClustersCommand::Create(args)) => create(client, common, args, shell).await,
        Some(ClustersCommand::Join(args)) => join(client, common, &args.name, &args.place, shell).await,
        Some(ClustersCommand::Revoke(args)) => revoke(client, common, &args, shell).await,
        Some(ClustersCommand::Delete { name }) => delete(client, common, &name, shell).await,
        Some(ClustersCommand::ApproveDeletes(args)) => {
            approve(client, common, &args.name, args.deletes, shell).await
        }
        Some(ClustersCommand::AcceptTimeline(args)) => accept(client, common, &args, shell).await,
        Some(ClustersCommand::AdmitCertificate(args)) => admit(client, common, &args, shell).await,
    }
}

async fn list(client: &Client, common: &Common, shell: &mut Shell) -> Outcome<()> {
    let clusters: Vec<Cluster> = client.list("Clusters", "clusters", json!({}), MOST).await?;
    let now = (shell.now)();
    render::list(
        shell,
        common.output,
        &clusters,
        "no clusters that you may see",
        |clusters| {
            let mut table = Table::new(&[
                "NAME",
                "STATE",
                "LAST SEEN",
                "AGENTS",
                "REVISION",
                "HELD",
                "VERSION",
                "LABELS",
            ]);
            for c in clusters {
                let seen = c.last_seen_at.map(|at| format!("{} ago", age(now, at)));
                table.row([
                    c.name.clone(),
                    c.state.to_lowercase().replace('_', " "),
                    seen.unwrap_or_else(|| "-".to_owned()),
                    c.agent_count.to_string(),
                    revision(c),
                    waiting::short(c),
                    c.version.clone().unwrap_or_else(|| "-".to_owned()),
                    labels(c),
                ]);
            }
            table
        },
    )?;
    for note in clusters.iter().flat_map(waiting::notes) {
        writeln!(shell.err, "{}", line(&format!("note: {note}")))?;
    }
    Ok(())
}

/// `12` where everything that should run does, else how far of how many.
pub(super) fn revision(cluster: &Cluster) -> String {
    if cluster.applied_revision == cluster.wanted_revision {
        cluster.wanted_revision.to_string()
    } else {
        format!("{} of {}", cluster.applied_revision, cluster.wanted_revision)
    }
}

pub(super) fn labels(cluster: &Cluster) -> String {
    let labels = cluster.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}

async fn create(client: &Client, common: &Common, args: ClusterCreate, shell: &mut Shell) -> Outcome<()> {
    let labels: BTreeMap<String, String> = args.labels.into_iter().collect();
    let input = json!({"name": args.name, "labels": labels, "idempotencyKey": idempotency_key()});
    let file = args
        .place
        .token_file
        .as_deref()
        .map(SecretFile::new)
        .transpose()?;
    let payload: ClusterPayload = client
        .call("CreateCluster", "createCluster", json!({"input": input}))
        .await?;
    let what = format!("the cluster {} was not registered", args.name);
    hand_over(client, common, payload, &what, file, &args.place, shell)
}

async fn join(
    client: &Client,
    common: &Common,
    name: &Name,
    place: &JoinPlace,
    shell: &mut Shell,
) -> Outcome<()> {
    let file = place.token_file.as_deref().map(SecretFile::new).transpose()?;
    let cluster = named(client, name).await?;
    let input = json!({"cluster": cluster.id, "idempotencyKey": idempotency_key()});
    let payload: ClusterPayload = client
        .call("CreateJoinToken", "createJoinToken", json!({"input": input}))
        .await?;
    let what = format!("no join token for the cluster {name}");
    hand_over(client, common, payload, &what, file, place, shell)
}

/// Puts the token where it was wanted, and says how a cluster agent uses it.
fn hand_over(
    client: &Client,
    common: &Common,
    payload: ClusterPayload,
    what: &str,
    file: Option<SecretFile>,
    place: &JoinPlace,
    shell: &mut Shell,
) -> Outcome<()> {
    if let Some(failure) = client.user_errors(&payload.errors, what, error_line) {
        return Err(failure);
    }
    let cluster = payload.object.ok_or_else(secret::neither_yes_nor_no)?;
    let token = payload.join_token.ok_or_else(|| {
        // The hub shows a token once: an answer that was lost had it.
        let message = format!(
            "the cluster {} is registered, and its join token was lost on the way",
            cluster.name
        );
        Failure::new(Exit::Failed, message)
            .next(format!("get another: roadstead clusters join {}", cluster.name))
    })?;
    let until = time(token.expires_at);
    let path = secret::hand_over(
        &token.token,
        file,
        common.output,
        shell,
        |kept| json!({"cluster": cluster, "expiresAt": token.expires_at, "joinToken": kept.secret, "tokenFile": kept.file}),
    )?;
    let hub = place
        .hub
        .clone()
        .unwrap_or_else(|| format!("{}:{FLEET_PORT}", client.host()));
    let file = path.map_or_else(|| "FILE".to_owned(), |path| path.display().to_string());
    let mut said = vec![
        format!(
            "cluster {}: its join token works once, until {until}",
            cluster.name
        ),
        format!(
            "next, where the agents are to run: roadstead-agent run --hub {hub} --state DIR --join-token-file {file}"
        ),
    ];
    if place.hub.is_none() {
        said.push(format!(
            "({hub} is a guess: --hub of the hub's fleet port, if it listens elsewhere)"
        ));
    }
    for words in said {
        writeln!(shell.err, "{}", line(&words))?;
    }
    Ok(())
}

pub(super) async fn named(client: &Client, name: &Name) -> Outcome<Cluster> {
    let found: Option<Cluster> = client
        .call("ClusterByName", "clusterByName", json!({"name": name}))
        .await?;
    found.ok_or_else(|| {
        let message = format!("there is no cluster {name} that you may see");
        Failure::new(Exit::NotFound, message).next("roadstead clusters")
    })
}

async fn revoke(client: &Client, common: &Common, args: &ClusterRevoke, shell: &mut Shell) -> Outcome<()> {
    let cluster = named(client, &args.name).await?;
    let input = json!({"cluster": cluster.id, "serial": args.serial, "idempotencyKey": idempotency_key()});
    let payload: RevokedPayload = client
        .call(
            "RevokeClusterCertificate",
            "revokeClusterCertificate",
            json!({"input": input}),
        )
        .await?;
    let what = format!("no certificate of {} was revoked", args.name);
    if let Some(failure) = client.user_errors(&payload.errors, &what, error_line) {
        return Err(failure);
    }
    if common.output != Format::Table {
        let value = json!({"cluster": cluster.name, "revoked": payload.revoked});
        return render::value(shell, common.output, &value);
    }
    shell.say(&format!(
        "{} certificates of {} revoked\n",
        payload.revoked, args.name
    ))?;
    Ok(writeln!(
        shell.err,
        "to let it in again: roadstead clusters join {}",
        args.name
    )?)
}

async fn delete(client: &Client, common: &Common, name: &Name, shell: &mut Shell) -> Outcome<()> {
    let cluster = named(client, name).await?;
    let input = json!({"cluster": cluster.id, "idempotencyKey": idempotency_key()});
    let payload: ClusterPayload = client
        .call("DeleteCluster", "deleteCluster", json!({"input": input}))
        .await?;
    done(client, common, &payload, &cluster, "deleted", shell)
}

async fn approve(
    client: &Client,
    common: &Common,
    name: &Name,
    deletes: u64,
    shell: &mut Shell,
) -> Outcome<()> {
    let cluster = named(client, name).await?;
    let input = json!({"cluster": cluster.id, "deletes": deletes, "idempotencyKey": idempotency_key()});
    let payload: ClusterPayload = client
        .call("ApproveDeletes", "approveDeletes", json!({"input": input}))
        .await?;
    let what = format!("{deletes} deletions approved");
    done(client, common, &payload, &cluster, &what, shell)
}

async fn accept(client: &Client, common: &Common, args: &ClusterAccept, shell: &mut Shell) -> Outcome<()> {
    let cluster = named(client, &args.name).await?;
    let input = json!({"cluster": cluster.id, "cursor": args.cursor, "idempotencyKey": idempotency_key()});
    let payload: ClusterPayload = client
        .call("AcceptTimeline", "acceptTimeline", json!({"input": input}))
        .await?;
    let seen = cluster.timeline.as_ref().filter(|t| t.cursor == args.cursor);
    let change = seen.map(|timeline| format!(": {}", waiting::change(timeline)));
    let what = format!(
        "the hub's view goes on over revision {}{}",
        args.cursor,
        change.unwrap_or_default()
    );
    done(client, common, &payload, &cluster, &what, shell)
}

async fn admit(client: &Client, common: &Common, args: &ClusterAdmit, shell: &mut Shell) -> Outcome<()> {
    let cluster = named(client, &args.name).await?;
    let input = json!({"cluster": cluster.id, "serial": args.serial, "idempotencyKey": idempotency_key()});
    let payload: ClusterPayload = client
        .call(
            "AdmitClusterCertificate",
            "admitClusterCertificate",
            json!({"input": input}),
        )
        .await?;
    let what = format!("certificate {} admitted", args.serial);
    done(client, common, &payload, &cluster, &what, shell)
}

fn done(
    client: &Client,
    common: &Common,
    payload: &ClusterPayload,
    cluster: &Cluster,
    what: &str,
    shell: &mut Shell,
) -> Outcome<()> {
    let not = format!("cluster {}: nothing was done", cluster.name);
    if let Some(failure) = client.user_errors(&payload.errors, &not, error_line) {
        return Err(match failure.exit {
            Exit::Conflict | Exit::NotFound => failure.next(format!(
                "roadstead describe cluster {} shows what waits",
                cluster.name
            )),
            _ => failure,
        });
    }
    if common.output != Format::Table {
        let value = json!({"cluster": cluster.name, "id": cluster.id, "done": what});
        return render::value(shell, common.output, &value);
    }
    shell.say(&format!("cluster {}: {}\n", line(&cluster.name), line(what)))
}
