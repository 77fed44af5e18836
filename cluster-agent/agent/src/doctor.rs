//! What a person should mend before, or after, a cluster agent does not work. Changes nothing.

use roadstead_inbox::Inbox;
use roadstead_link::Identity;
use roadstead_runtime::find_engine;
use std::{fmt, path::Path, time::Duration};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    /// What was found; or what is wrong, with what to do.
    pub outcome: Result<String, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(found) => write!(f, "ok    {}: {found}", self.what),
            Err(wrong) => write!(f, "WRONG {}: {wrong}", self.what),
        }
    }
}

/// Looks at everything. `now`: seconds since the Unix epoch.
pub async fn examine(hub: &str, state: &Path, engine: Option<&Path>, now: i64) -> Vec<Finding> {
    vec![
        Finding {
            what: "state",
            outcome: folder(state),
        },
        Finding {
            what: "engine",
            outcome: self::engine(engine).await,
        },
        Finding {
            what: "identity",
            outcome: identity(&state.join("link"), now),
        },
        Finding {
            what: "inbox",
            outcome: inbox(&state.join("inbox.db")).await,
        },
        Finding {
            what: "hub",
            outcome: reach(hub).await,
        },
    ]
}

fn folder(state: &Path) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let shown = state.display();
    let found = std::fs::metadata(state).map_err(|error| format!("{shown}: {error}; `run` makes it"))?;
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown} has mode {mode:o}: others can read keys and tokens; chmod 700 it"
        ));
    }
    Ok(format!("{shown}, mode {mode:o}"))
}

async fn engine(named: Option<&Path>) -> Result<String, String> {
    let path = find_engine(named).map_err(|error| error.to_string())?;
    let asked = tokio::process::Command::new(&path)
        .arg("--version")
        .kill_on_drop(true)
        .output();
    let shown = path.display();
    match tokio::time::timeout(Duration::from_secs(5), asked).await {
        Ok(Ok(said)) if said.status.success() => Ok(format!(
            "{shown}: {}",
            String::from_utf8_lossy(&said.stdout).trim()
        )),
        Ok(Ok(said)) => Err(format!("{shown} does not work: {}", said.status)),
        Ok(Err(error)) => Err(format!("{shown} cannot be started: {error}")),
        Err(_) => Err(format!("{shown} does not say its version within 5 s")),
    }
}

fn identity(folder: &Path, now: i64) -> Result<String, String> {
    match Identity::load(folder) {
        Ok(Some(identity)) if identity.not_after <= now => {
            Err("the certificate expired: make a join token for this cluster and start with it".to_owned())
        }
        Ok(Some(identity)) => Ok(format!(
            "tenant {}, cluster {}, certificate {} good for {} h; trusts {} of the hub's roots (generation {})",
            identity.tenant,
            identity.cluster,
            identity.serial(),
            (identity.not_after - now) / 3600,
            identity.roots(),
            identity.trust_generation()
        )),
        Ok(None) => Err("this cluster has not joined: start with --join-token-file".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn inbox(path: &Path) -> Result<String, String> {
    if !path.exists() {
        return Err("there is none yet; `run` makes it".to_owned());
    }
    let inbox = match Inbox::open(path) {
        Ok(inbox) => inbox,
        Err(roadstead_inbox::InboxError::InUse) => return Ok("held by a running cluster agent".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let position = inbox.position().await.map_err(|error| error.to_string())?;
    Ok(format!(
        "{} documents at revision {}",
        position.documents, position.cursor
    ))
}

async fn reach(hub: &str) -> Result<String, String> {
    let dial = tokio::net::TcpStream::connect(hub);
    match tokio::time::timeout(Duration::from_secs(5), dial).await {
        Ok(Ok(_)) => Ok(format!("{hub} accepts connections")),
        Ok(Err(error)) => Err(format!("{hub} cannot be reached: {error}")),
        Err(_) => Err(format!("{hub} does not answer within 5 s")),
    }
}
