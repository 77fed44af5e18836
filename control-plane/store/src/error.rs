//! From the database's words to the hub's.
//!
//! Whatever a later try may cure is [`Error::Unavailable`], with a sentence that says what to look at; the rest is a
//! fault. Statements and values never leave in the outward sentence.

use crate::observe::failed;
use roadstead_domain::{ConflictReason, Error};
use sea_orm::{DbErr, RuntimeErr};

/// The hub's error for what the database said.
pub(crate) fn outward(error: DbErr) -> Error {
    match inner(&error) {
        Some(sqlx::Error::Database(said)) => {
            let code = said.code().unwrap_or_default().into_owned();
            by_code(&code, error)
        }
        Some(sqlx::Error::PoolTimedOut) => {
            failed("no_connection");
            Error::unavailable(
                "the database has no free connection; try again in a moment",
                error,
            )
        }
        Some(lost) if is_lost(lost) => gone(error),
        Some(_) => fault(error),
        None => match error {
            DbErr::Conn(RuntimeErr::Internal(_)) => gone(DbErr::Conn(RuntimeErr::Internal(
                "the connection could not be made".to_owned(),
            ))),
            DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => gone(error),
            other => fault(other),
        },
    }
}

/// The same for a commit: when the connection is lost meanwhile, nobody knows whether the database kept it.
pub(crate) fn outward_of_commit(error: DbErr) -> Error {
    if inner(&error).is_some_and(is_lost) {
        failed("gone");
        let message = "the database went away while it kept this write, which may be there or not: look, or repeat it \
                       under the same idempotency key";
        return Error::unavailable(message, error);
    }
    outward(error)
}

fn is_lost(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_)
    )
}

fn fault(error: DbErr) -> Error {
    failed("fault");
    Error::internal(error)
}

fn gone(error: DbErr) -> Error {
    failed("gone");
    Error::unavailable(
        "the database does not answer; nothing was changed, try again later",
        error,
    )
}

fn inner(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(e))
        | DbErr::Exec(RuntimeErr::SqlxError(e))
        | DbErr::Query(RuntimeErr::SqlxError(e)) => Some(e),
        _ => None,
    }
}

/// By SQLite's result code (decimal, <https://sqlite.org/rescode.html>) or PostgreSQL's SQLSTATE (its appendix A).
fn by_code(code: &str, error: DbErr) -> Error {
    if let Ok(number) = code.parse::<u32>()
        && code.len() < 5
    {
        return match number & 0xff {
            5 | 6 => {
                failed("locked");
                Error::unavailable(
                    "the database is locked by another process; nothing was changed, try again later",
                    error,
                )
            }
            13 => full(error),
            8 | 10 | 11 | 14 | 26 => {
                failed("unusable");
                Error::unavailable(
                    "the database file cannot be used (read-only, damaged or gone); nothing was changed",
                    error,
                )
            }
            _ => unique_or_internal(matches!(number, 1555 | 2067), error),
        };
    }
    match code {
        "53100" => full(error),
        "40001" | "40P01" | "55P03" | "57014" => {
            failed("busy");
            Error::unavailable("the database is too busy; nothing was changed, try again", error)
        }
        "25006" => {
            failed("unusable");
            Error::unavailable(
                "the database only reads; nothing was changed, try again later",
                error,
            )
        }
        _ if ["08", "53", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            gone(error)
        }
        _ => unique_or_internal(code == "23505", error),
    }
}

fn full(error: DbErr) -> Error {
    failed("full");
    Error::unavailable(
        "the database's disk is full; nothing was changed: make room, then try again",
        error,
    )
}

fn unique_or_internal(unique: bool, error: DbErr) -> Error {
    if unique {
        failed("unique");
        Error::conflict(
            ConflictReason::Exists,
            "somebody else has just made the same; read again and retry",
        )
    } else {
        fault(error)
    }
}

/// A row that cannot be what the hub wrote.
pub(crate) fn corrupt(what: &str) -> Error {
    Error::internal(format!("the database holds {what}, which the hub never writes"))
}
