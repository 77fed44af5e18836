//! `roadstead-hub dev`: everything in one process tree on one laptop, on loopback, with no cluster, database server or
//! cloud. The parts are the real ones: gRPC with mutual TLS, revisions and acks, A2A, MCP servers.

mod context;
mod demo_model;
mod greeting;
mod model_choice;
mod model_document;
mod state;

use crate::{
    composition::{Config, Hub},
    limits::Limits,
    proxy::Trusted,
};
use anyhow::{Context as _, bail};
use greeting::{Example, Greeting};
use model_choice::Choice;
use model_document::Written;
use roadstead_agent::{Agent, LinkState};
use roadstead_authz::{Presented, RequestInfo, SecretKind, TenantContext};
use roadstead_contract::fleet::JoinToken;
use roadstead_service::{authenticate, bootstrap};
use roadstead_store::StoreOptions;
use roadstead_telemetry::Metrics;
use secrecy::ExposeSecret as _;
use state::State;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// What the lock of dev's database says of who uses it.
pub(crate) const DEV: &str = "dev";
const TENANT: &str = "local";
const PROJECT: &str = "default";
const CLUSTER: &str = "local";
/// For the cluster agent's first session.
const CONNECT: Duration = Duration::from_secs(10);
/// What running tasks get when dev ends.
const GRACE: Duration = Duration::from_secs(3);

/// Everything on this machine, reachable from this machine alone.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of database, keys, journals and logs.
    #[arg(long, value_name = "DIR", default_value = "./.roadstead")]
    state: PathBuf,
    /// Loopback address of the API.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Loopback address of /metrics (127.0.0.1:9090); not served if left out.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// The engine's program; else `roadstead-engine` beside this one.
    #[arg(long, value_name = "FILE", env = "ROADSTEAD_ENGINE")]
    engine: Option<PathBuf>,
}

/// Runs until `stop`.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub(crate) async fn run(args: Args, metrics: Metrics, stop: CancellationToken) -> anyhow::Result<()> {
    refuse_production(args.listen, args.metrics, |name| std::env::var_os(name).is_some())?;
    if let Err(error) = roadstead_processes::adopt_orphans() {
        tracing::warn!(%error, "what engines leave behind is found by their session alone");
    }
    let state = State::open(&args.state)?;
    let engine = roadstead_agent::find_engine(args.engine.as_deref())?;
    let config = Config {
        who: DEV,
        store: StoreOptions::new(format!("sqlite:{}", state.database().display())),
        listen: args.listen,
        fleet_listen: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0),
        fleet_names: vec!["127.0.0.1".into(), "localhost".into()],
        public_url: None,
        keys: state.keys(),
        metrics_listen: args.metrics,
        tls: None,
        limits: Limits::default(),
        proxies: Trusted::default(),
    };
    let started = Hub::start(&config, metrics.clone()).await;
    let mut hub = started.map_err(|error| explained(error, args.listen))?;
    refuse_strangers(&hub).await?;
    let ended = match start(&hub, &state, engine, metrics, &stop).await {
        Ok(Some(started)) => serve(&mut hub, &state, started, &stop).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    hub.stop().await;
    ended
}

/// What runs beside the hub.
struct Started {
    agent: Agent,
    choice: Choice,
    written: Written,
    example: Example,
    server: String,
    config: PathBuf,
}

/// Makes tenant, model and context, and starts the cluster agent; `None` when it was told to stop meanwhile.
async fn start(
    hub: &Hub,
    state: &State,
    engine: PathBuf,
    metrics: Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Started>> {
    let (tenant, project, cluster) = (TENANT.parse()?, PROJECT.parse()?, CLUSTER.parse()?);
    let found = bootstrap::dev(&hub.store, &tenant, &project, &cluster).await?;
    let caller = sign_in(hub, &found, state).await?;
    let demo = demo_model::start(state.demo_port()?, stop.clone()).await?;
    state.keep_demo_port(demo.port())?;
    let looked = Choice::find(|name| std::env::var(name).ok(), model_choice::OLLAMA);
    let Some(choice) = stop.run_until_cancelled(looked).await else {
        return Ok(None);
    };
    let choice = choice?;
    let written = model_document::write(hub, &caller, &choice, demo).await?;
    let example = greeting::example(state.folder(), std::env::var_os("PATH").as_deref())?;
    let server = format!("http://{}", hub.address);
    let config = context::path(|name| std::env::var(name).ok())?;
    let token_file = state.token_file().canonicalize()?;
    let agent = start_agent(hub, &found, state, engine, metrics).await?;
    context::write(
        &config,
        &context::Context {
            server: &server,
            tenant: TENANT,
            project: PROJECT,
            token_file: &token_file,
        },
    )?;
    Ok(Some(Started {
        agent,
        choice,
        written,
        example,
        server,
        config,
    }))
}

/// Greets when the cluster agent has reached the hub, and goes on until `stop`.
async fn serve(
    hub: &mut Hub,
    state: &State,
    started: Started,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let agent = &started.agent;
    let ended = match stop.run_until_cancelled(wait_for_link(agent)).await {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(())) => {
            let greeting = Greeting {
                server: &started.server,
                state: state.folder(),
                config: &started.config,
                config_named: std::env::var_os("ROADSTEAD_CONFIG").is_some_and(|set| !set.is_empty()),
                choice: &started.choice,
                written: started.written,
                example: &started.example,
                program: &std::env::current_exe().unwrap_or_default(),
            };
            say(&greeting.text());
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                failed = hub.failed() => failed,
                error = agent.gave_up() => Err(anyhow::anyhow!("the cluster agent gave up: {error}")),
            }
        }
    };
    started.agent.shutdown().await;
    ended
}

/// What kept the hub from starting, with a way out where there is one.
fn explained(error: anyhow::Error, listen: SocketAddr) -> anyhow::Error {
    let causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    if causes
        .map(io::Error::kind)
        .any(|kind| kind == io::ErrorKind::AddrInUse)
    {
        return anyhow::anyhow!(
            "{listen} is taken by another program, maybe by another `roadstead-hub dev`\n  next: stop it, or listen \
             elsewhere: --listen {}:0 takes a free port",
            listen.ip()
        );
    }
    error
}

/// dev is for one person on one machine: it refuses to be anything else.
fn refuse_production(
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
    is_set: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    for (name, address) in [("--listen", Some(listen)), ("--metrics", metrics)] {
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            bail!(
                "{name}: expected a loopback address (127.0.0.1:8080), found {address}: dev must not be reachable from \
                   another machine; `roadstead-hub serve` is"
            );
        }
    }
    for variable in ["ROADSTEAD_DATABASE", "ROADSTEAD_DATABASE_FILE", "DATABASE_URL"] {
        if is_set(variable) {
            bail!(
                "{variable} is set: dev keeps its own database and must not meet a real one; unset it, or use \
                   `roadstead-hub serve`"
            );
        }
    }
    Ok(())
}

/// The database of dev has dev's own tenant and no other: with others it is somebody's production.
async fn refuse_strangers(hub: &Hub) -> anyhow::Result<()> {
    let tenants = bootstrap::tenants(&hub.store).await?;
    match tenants.iter().find(|name| *name != TENANT) {
        None => Ok(()),
        Some(name) => bail!(
            "the database in --state holds the tenant {name}, which dev did not make: use another --state, or \
               `roadstead-hub serve`"
        ),
    }
}

/// The token of the CLI's context: the one in the state folder while it is good, else a new one.
async fn sign_in(hub: &Hub, found: &bootstrap::Dev, state: &State) -> anyhow::Result<TenantContext> {
    if let Some(kept) = state.token()?
        && let Ok(presented) = Presented::parse(SecretKind::ApiToken, &kept)
        && let Ok(context) = authenticate::api_token(&hub.store, &presented, request()).await
    {
        return Ok(context);
    }
    let issued = found.owner.issue_token(&hub.store, "dev").await?;
    let secret = issued.secret.expose_secret();
    state.keep_token(secret)?;
    let presented = Presented::parse(SecretKind::ApiToken, secret)?;
    Ok(authenticate::api_token(&hub.store, &presented, request()).await?)
}

fn request() -> RequestInfo {
    let mut request = RequestInfo::default();
    "hub".clone_into(&mut request.source.client);
    request
}

async fn start_agent(
    hub: &Hub,
    found: &bootstrap::Dev,
    state: &State,
    engine: PathBuf,
    metrics: Metrics,
) -> anyhow::Result<Agent> {
    let hub_address = hub.fleet_address.to_string();
    let mut config = roadstead_agent::Config::new(hub_address, state.cluster(), engine);
    if !state.joined() {
        let joinable = found.join_token(&hub.store).await?;
        let secret = joinable.secret.expose_secret().to_owned();
        config.join = Some(JoinToken::new(secret, hub.authority.pin()?)?);
    }
    for name in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ROADSTEAD_MODEL_KEY"] {
        config.offered.insert(name.to_owned());
    }
    // Whoever applies documents here is whoever runs this process.
    config.programs = roadstead_agent::Programs::Any;
    config.metrics = metrics;
    config.grace = GRACE;
    Ok(Agent::start(config).await?)
}

async fn wait_for_link(agent: &Agent) -> anyhow::Result<()> {
    let mut link = agent.link();
    let live = link.wait_for(|state| matches!(state, LinkState::Connected { .. }));
    tokio::select! {
        waited = tokio::time::timeout(CONNECT, live) => {
            waited.context("the cluster agent has not reached the hub")??;
            Ok(())
        }
        error = agent.gave_up() => Err(anyhow::anyhow!("the cluster agent cannot join: {error}")),
    }
}

#[expect(clippy::print_stdout, reason = "what the person who started dev reads")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_is_for_loopback_and_its_own_database() {
        let refused = |listen: &str, set: &str| {
            let set = set.to_owned();
            let error = refuse_production(listen.parse().expect("an address"), None, |name| name == set);
            error.err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(refused("0.0.0.0:8080", "").contains("expected a loopback address"));
        for variable in ["DATABASE_URL", "ROADSTEAD_DATABASE", "ROADSTEAD_DATABASE_FILE"] {
            let said = format!("{variable} is set");
            assert!(refused("127.0.0.1:8080", variable).contains(&said), "{variable}");
        }
        let metrics = Some("0.0.0.0:9090".parse().expect("an address"));
        refuse_production("127.0.0.1:8080".parse().expect("an address"), metrics, |_| false).unwrap_err();
        assert_eq!(refused("[::1]:8080", ""), "");
    }

    #[test]
    fn a_taken_port_says_how_to_take_another() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        let taken = anyhow::Error::from(io::Error::from(io::ErrorKind::AddrInUse)).context("listening");
        let said = explained(taken, listen).to_string();
        assert!(
            said.starts_with("127.0.0.1:8080 is taken")
                && said.contains("next: stop it, or listen elsewhere"),
            "{said}"
        );
        let other =
            anyhow::Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).context("listening");
        assert_eq!(explained(other, listen).to_string(), "listening");
    }
}
