//! `info.Info`: what this instance is.

use std::sync::Arc;

use gitstafette_core::repository::Watchlist;
use gitstafette_proto::info::info_server::Info;
use gitstafette_proto::info::{GetInfoRequest, GetInfoResponse, InstanceType, ServerInfo};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::debug;

use crate::relay::Relays;
use crate::subscribe::status;
use crate::watchlist::LiveWatchlist;

/// Answers what this instance is.
#[derive(Debug)]
pub(crate) struct InfoService {
    pub(crate) name: String,
    pub(crate) server: ServerInfo,
    pub(crate) watchlist: Arc<LiveWatchlist>,
    pub(crate) relays: Arc<Relays>,
    pub(crate) draining: CancellationToken,
}

/// The watchlist as `ServerInfo` has it: separated by commas.
fn repositories(watchlist: &Watchlist) -> String {
    watchlist.patterns().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[tonic::async_trait]
impl Info for InfoService {
    async fn get_info(&self, request: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let GetInfoRequest { client_id, client_endpoint } = request.into_inner();
        debug!(client.id = ?client_id, client.endpoint = ?client_endpoint, "asked for info");
        let (relay, relays) = self.relays.infos().await.map_err(|error| status(&error))?;
        Ok(Response::new(GetInfoResponse {
            alive: !self.draining.is_cancelled(),
            instance_type: InstanceType::Server.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            server: Some(ServerInfo {
                repositories: Some(repositories(&self.watchlist.current())),
                ..self.server.clone()
            }),
            relay,
            relays,
        }))
    }
}
