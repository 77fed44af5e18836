//! What one tenant may take of a hub, so that the others find something left (S39). Settings of `serve`, for each replica by
//! itself.

use clap::value_parser;
use roadstead_http::BodyLimits;
use roadstead_login::{Rate, RequestLimit};
use roadstead_store::TenantPlaces;

const MIB: usize = 1024 * 1024;
/// Bytes that one GraphQL answer may need; a tenant that has less gets none of the large ones.
const ONE_ANSWER: i64 = 32;
/// MiB that one body may have.
const ONE_BODY: i64 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Limits between tenants")]
pub(crate) struct Limits {
    /// Requests a second of one API token; twice as many at once after a pause.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1_000,
        value_parser = value_parser!(u32).range(1..=100_000),
        env = "ROADSTEAD_TOKEN_REQUESTS"
    )]
    token_requests: u32,
    /// Requests a second of all API tokens of one tenant; twice as many at once after a pause.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 2_000,
        value_parser = value_parser!(u32).range(1..=100_000),
        env = "ROADSTEAD_TENANT_REQUESTS"
    )]
    tenant_requests: u32,
    /// MiB of request bodies that are held for one tenant at once (8 to 4096): one body has at most 8.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 16,
        value_parser = value_parser!(u32).range(ONE_BODY..=4_096),
        env = "ROADSTEAD_TENANT_BODIES"
    )]
    tenant_bodies: u32,
    /// MiB of request bodies that are held for all tenants at once: no less than for one.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 64,
        value_parser = value_parser!(u32).range(ONE_BODY..=65_536),
        env = "ROADSTEAD_BODIES"
    )]
    bodies: u32,
    /// MiB of documents in GraphQL answers that are on their way to one tenant at once (32 to 16384): one answer has at most
    /// 32.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 64,
        value_parser = value_parser!(u32).range(ONE_ANSWER..=16_384),
        env = "ROADSTEAD_TENANT_ANSWERS"
    )]
    tenant_answers: u32,
    /// The same for all tenants at once: no less than for one.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 256,
        value_parser = value_parser!(u32).range(ONE_ANSWER..=65_536),
        env = "ROADSTEAD_ANSWERS"
    )]
    answers: u32,
    /// Transactions of one tenant that write at once; 4 on PostgreSQL and 2 on SQLite, where they queue for the one writer, if
    /// left out. On PostgreSQL those that write and those that read are together at most 15, of 16 connections.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = value_parser!(u8).range(1..=15),
        env = "ROADSTEAD_TENANT_WRITERS"
    )]
    tenant_writers: Option<u8>,
    /// Transactions of one tenant that read at once (on SQLite 1 to 3 of 4 connections); 8 on PostgreSQL and 3 on SQLite if
    /// left out.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = value_parser!(u8).range(1..=15),
        env = "ROADSTEAD_TENANT_READERS"
    )]
    tenant_readers: Option<u8>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            token_requests: 1_000,
            tenant_requests: 2_000,
            tenant_bodies: 16,
            bodies: 64,
            tenant_answers: 64,
            answers: 256,
            tenant_writers: None,
            tenant_readers: None,
        }
    }
}

impl Limits {
    /// What the settings say together.
    ///
    /// # Errors
    /// Where one tenant may have more than all.
    pub(crate) fn check(self) -> anyhow::Result<Self> {
        for (of_one, one, of_all, all) in [
            ("--tenant-bodies", self.tenant_bodies, "--bodies", self.bodies),
            ("--tenant-answers", self.tenant_answers, "--answers", self.answers),
        ] {
            anyhow::ensure!(
                one <= all,
                "{of_all}: expected at least what one tenant may have ({of_one} {one}), found {all}"
            );
        }
        Ok(self)
    }

    pub(crate) fn requests(&self) -> RequestLimit {
        let rate = |per_second: u32| Rate {
            per_second,
            burst: per_second * 2,
        };
        RequestLimit {
            token: rate(self.token_requests),
            tenant: rate(self.tenant_requests),
        }
    }

    pub(crate) fn bodies(&self) -> BodyLimits {
        BodyLimits {
            total: mib(self.bodies),
            tenant: mib(self.tenant_bodies),
            ..BodyLimits::default()
        }
    }

    pub(crate) fn graphql(&self) -> roadstead_graphql::Limits {
        roadstead_graphql::Limits {
            answers: (mib(self.answers), mib(self.tenant_answers)),
            ..roadstead_graphql::Limits::default()
        }
    }

    pub(crate) fn places(&self) -> TenantPlaces {
        TenantPlaces {
            reading: self.tenant_readers.map(usize::from),
            writing: self.tenant_writers.map(usize::from),
        }
    }
}

fn mib(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(MIB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Given {
        #[command(flatten)]
        limits: Limits,
    }

    fn given(words: &str) -> Result<Limits, clap::Error> {
        let words = std::iter::once("x").chain(words.split_whitespace());
        Given::try_parse_from(words).map(|given| given.limits)
    }

    #[test]
    fn what_is_left_out_is_as_it_was() {
        let limits = given("").expect("nothing is needed");
        assert_eq!(limits, Limits::default());
        let (requests, usual) = (limits.requests(), RequestLimit::default());
        let rates = |of: RequestLimit| [of.token, of.tenant].map(|rate| (rate.per_second, rate.burst));
        assert_eq!(rates(requests), rates(usual));
        let (bodies, usual) = (limits.bodies(), BodyLimits::default());
        assert_eq!(
            (bodies.total, bodies.tenant, bodies.time),
            (usual.total, usual.tenant, usual.time)
        );
        assert_eq!(
            limits.graphql().answers,
            roadstead_graphql::Limits::default().answers
        );
        assert_eq!(limits.places(), TenantPlaces::default());
    }

    #[test]
    fn bounds_hold_and_one_tenant_has_no_more_than_all() {
        for wrong in [
            "--token-requests 0",
            "--tenant-requests 100001",
            "--tenant-bodies 7",
            "--answers 31",
            "--tenant-writers 16",
            "--tenant-readers 0",
        ] {
            given(wrong).expect_err(wrong);
        }
        let limits = given("--tenant-bodies 65 --tenant-writers 3").expect("each within its bounds");
        assert_eq!(limits.places().writing, Some(3));
        let error = limits.check().expect_err("more than all").to_string();
        assert!(
            error.contains("--bodies") && error.contains("--tenant-bodies 65"),
            "{error}"
        );
        given("--tenant-bodies 65 --bodies 65")
            .expect("parsed")
            .check()
            .expect("enough for one");
    }
}
