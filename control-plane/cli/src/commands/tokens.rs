//! `tokens`: with what programs and people act on the tenant.

use super::{idempotency_key, secret};
use crate::{
    api::{ApiToken, ApiTokenPayload, RevokedTokenPayload},
    args::{Common, Format, TokenCreate, TokenRevoke, Tokens, TokensCommand},
    client::{Client, error_line},
    failure::{Exit, Failure, Outcome},
    render::{self, Table, age, time},
    secret_file::SecretFile,
    shell::Shell,
    text::line,
};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::io::Write as _;

/// Most tokens that are listed.
const MOST: usize = 10_000;
const DAY: u64 = 24 * 60 * 60;

pub(super) async fn run(client: &Client, common: &Common, args: Tokens, shell: &mut Shell) -> Outcome<()> {
    match args.command {
        None | Some(TokensCommand::List) => list(client, common, shell).await,
        Some(TokensCommand::Create(args)) => create(client, common, &args, shell).await,
        Some(TokensCommand::Revoke(args)) => revoke(client, common, &args, shell).await,
    }
}

async fn list(client: &Client, common: &Common, shell: &mut Shell) -> Outcome<()> {
    let tokens: Vec<ApiToken> = client.list("ApiTokens", "apiTokens", json!({}), MOST).await?;
    let now = (shell.now)();
    let nothing = "no tokens that you may see";
    render::list(shell, common.output, &tokens, nothing, |tokens| {
        table(tokens, now)
    })
}

fn table(tokens: &[ApiToken], now: DateTime<Utc>) -> Table {
    let mut table = Table::new(&[
        "ID",
        "NAME",
        "ROLE",
        "SCOPES",
        "STATE",
        "EXPIRES",
        "LAST USED",
        "BY",
    ]);
    for token in tokens {
        let state = match token.revoked_at {
            Some(_) => "revoked",
            None if token.expires_at <= now => "expired",
            None => "good",
        };
        let used = token.last_used_at.map(|at| format!("{} ago", age(now, at)));
        table.row([
            token.id.clone(),
            token.name.clone(),
            token.role.to_lowercase(),
            token.scopes.join(",").to_lowercase(),
            state.to_owned(),
            time(token.expires_at),
            used.unwrap_or_else(|| "never".to_owned()),
            token.created_by.clone(),
        ]);
    }
    table
}

async fn create(client: &Client, common: &Common, args: &TokenCreate, shell: &mut Shell) -> Outcome<()> {
    let file = args.token_file.as_deref().map(SecretFile::new).transpose()?;
    let scopes: Vec<&str> = args.scopes.iter().map(|scope| scope.name()).collect();
    let input = json!({"name": args.name, "role": args.role.name(), "scopes": scopes,
        "lifetimeSeconds": args.days * DAY, "idempotencyKey": idempotency_key()});
    let payload: ApiTokenPayload = client
        .call("CreateApiToken", "createApiToken", json!({"input": input}))
        .await?;
    if let Some(failure) = client.user_errors(&payload.errors, "no token was made", error_line) {
        return Err(failure);
    }
    let token = payload.object.ok_or_else(secret::neither_yes_nor_no)?;
    let secret = payload.secret.ok_or_else(|| {
        // The hub shows a token once: an answer that was lost had it.
        let message = format!(
            "the token {} was made, and its secret was lost on the way",
            token.id
        );
        Failure::new(Exit::Failed, message)
            .next(format!("roadstead tokens revoke {}, and make another", token.id))
    })?;
    secret::hand_over(
        &secret,
        file,
        common.output,
        shell,
        |kept| json!({"token": token, "secret": kept.secret, "tokenFile": kept.file}),
    )?;
    let said = format!(
        "{}: {} until {}; to end it: roadstead tokens revoke {}",
        token.name,
        token.role.to_lowercase(),
        time(token.expires_at),
        token.id
    );
    Ok(writeln!(shell.err, "{}", line(&said))?)
}

async fn revoke(client: &Client, common: &Common, args: &TokenRevoke, shell: &mut Shell) -> Outcome<()> {
    let id = &args.id;
    let input = json!({"id": id, "keepIssued": args.keep_issued, "idempotencyKey": idempotency_key()});
    let payload: RevokedTokenPayload = client
        .call("RevokeApiToken", "revokeApiToken", json!({"input": input}))
        .await?;
    let what = format!("the token {id} was not revoked");
    if let Some(failure) = client.user_errors(&payload.errors, &what, error_line) {
        return Err(match failure.exit {
            // It issued the token of this context.
            Exit::Conflict if !args.keep_issued => failure.next(format!(
                "roadstead tokens revoke {id} --keep-issued ends it alone; or use the context of another token"
            )),
            _ => failure.next("roadstead tokens lists the ids"),
        });
    }
    let token = payload.object.ok_or_else(secret::neither_yes_nor_no)?;
    let also = payload.also_revoked;
    if common.output != Format::Table {
        let value = json!({"token": token, "alsoRevoked": also, "joinTokensEnded": payload.join_tokens_ended,
            "enrolledClusters": payload.enrolled_clusters, "enrolledClusterCount": payload.enrolled_cluster_count});
        return render::value(shell, common.output, &value);
    }
    let others = match also {
        0 => String::new(),
        1 => ", and 1 token that it issued".to_owned(),
        many => format!(", and {many} tokens that it issued, or that these did"),
    };
    shell.say(&format!(
        "token {} ({}) revoked{others}\n",
        line(&token.id),
        line(&token.name)
    ))?;
    if also > 0 {
        writeln!(
            shell.err,
            "roadstead audit names each; roadstead tokens shows who issued which (BY)"
        )?;
    }
    match payload.join_tokens_ended {
        0 => {}
        1 => writeln!(shell.err, "a join token that nobody had used ended with it")?,
        many => writeln!(shell.err, "{many} join tokens that nobody had used ended with it")?,
    }
    for cluster in &payload.enrolled_clusters {
        let name = line(&cluster.name);
        writeln!(
            shell.err,
            "cluster {name} joined by it and stays; to shut it out: roadstead clusters revoke {name}"
        )?;
    }
    let named = payload.enrolled_clusters.len() as u64;
    if payload.enrolled_cluster_count > named {
        let more = payload.enrolled_cluster_count - named;
        writeln!(
            shell.err,
            "{more} more clusters joined by it and stay; roadstead describe cluster says by whom (Enrolled by)"
        )?;
    }
    Ok(())
}
