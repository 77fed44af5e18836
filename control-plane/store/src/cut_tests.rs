//! Connections to PostgreSQL that are cut without a word: packets are lost, and no end is said.

use crate::open::CONNECTIONS;
use crate::testing::TestDatabase;
use crate::tx::begin;
use crate::{Store, StoreOptions};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbBackend, SqliteTransactionMode, Statement};
use std::io;
use std::net::SocketAddr;
use std::str::FromStr as _;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// On the way to the database. What it carries when it is cut goes no further, and stays open on both sides.
struct Way {
    address: SocketAddr,
    cut: watch::Sender<()>,
}

impl Way {
    async fn to(host: String, port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (cut, cuts) = watch::channel(());
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (host, mut cuts) = (host.clone(), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect((host.as_str(), port)).await?;
                    tokio::select! {
                        ended = copy_bidirectional(&mut near, &mut far) => ended.map(drop),
                        _ = cuts.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Ok(Self { address, cut })
    }
}

/// The store, and the way to its database.
async fn far(database: &TestDatabase) -> (Store, Way) {
    let options = sqlx::postgres::PgConnectOptions::from_str(database.url()).unwrap();
    let (host, port) = (options.get_host().to_owned(), options.get_port());
    let way = Way::to(host, port).await.unwrap();
    let (scheme, rest) = database.url().split_once("://").unwrap();
    let (role, place) = rest.split_once('@').unwrap();
    let (_, name) = place.split_once('/').unwrap();
    let url = format!("{scheme}://{role}@{}/{name}", way.address);
    (Store::open(StoreOptions::new(&url)).await.unwrap(), way)
}

const SELECT: &str = "SELECT 1 FROM tenant";

#[expect(clippy::disallowed_methods, reason = "no row of a tenant")]
async fn read(store: &Store) -> bool {
    let Ok(db) = begin(&store.read, SqliteTransactionMode::Deferred).await else {
        return false;
    };
    let statement = Statement::from_string(DbBackend::Postgres, SELECT);
    db.query_all_raw(statement).await.is_ok()
}

/// Transactions in every connection that the pool has.
async fn all(store: &Store) -> Vec<DatabaseTransaction> {
    let mut all = Vec::new();
    while let Ok(db) = begin(&store.read, SqliteTransactionMode::Deferred).await {
        all.push(db);
        if all.len() == CONNECTIONS as usize {
            break;
        }
    }
    all
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "no row of a tenant")]
async fn connections_that_are_cut_while_they_are_used_leave_their_places_to_others() {
    let Some(database) = TestDatabase::postgres().await else {
        return;
    };
    let (store, way) = far(&database).await;
    let used = all(&store).await;
    assert_eq!(used.len(), CONNECTIONS as usize);
    way.cut.send_replace(());
    // Each is given up by whoever waits for it, as a limit on a request does it.
    for db in used {
        let statement = Statement::from_string(DbBackend::Postgres, SELECT);
        let answered = timeout(Duration::from_millis(100), db.query_all_raw(statement)).await;
        assert!(answered.is_err(), "nothing gets through");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !timeout(Duration::from_secs(20), read(&store))
        .await
        .unwrap_or(false)
    {
        assert!(Instant::now() < deadline, "the places are lost");
    }
    let places = timeout(deadline - Instant::now(), all(&store))
        .await
        .expect("in time");
    assert_eq!(places.len(), CONNECTIONS as usize, "every place is there again");
}
