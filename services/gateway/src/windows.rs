//! `GET /windows/stream`: the counts of videos in each window, interim and final, as they come.

mod feed;
mod reader;
mod table;

use std::sync::Arc;

use herald_runtime::http::{Action, Principal, Resource, failure, method_not_allowed, unavailable};
use hyper::{Method, StatusCode};
use warp::reply::Response;

use crate::App;
use crate::http::Query;
use crate::{likes, sse};

pub use feed::Feed;

/// The most videos of one stream.
const MAX_VIDEOS: usize = 20;

/// Answers with a snapshot of the latest results, then those that are new.
pub fn stream(app: &App, method: &Method, query: &Query, principal: &Principal) -> Response {
    if method != Method::GET {
        return method_not_allowed("GET");
    }
    let Some(feed) = &app.windows else {
        let sentence = "this gateway has no likes; set --likes-topic";
        return failure(StatusCode::NOT_FOUND, sentence);
    };
    let videos: Result<Vec<&str>, String> = query.all("video").map(likes::check).collect();
    let videos = match videos {
        Ok(videos) if (1..=MAX_VIDEOS).contains(&videos.len()) => videos,
        Ok(videos) => {
            let sentence = format!(
                "there are {} parameters video; give 1 to {MAX_VIDEOS}, each an identifier",
                videos.len()
            );
            return failure(StatusCode::BAD_REQUEST, &sentence);
        }
        Err(sentence) => return failure(StatusCode::BAD_REQUEST, &sentence),
    };
    for video in &videos {
        if let Err(refusal) = principal.may(Action::Read, Resource::Room(video)) {
            return refusal.response();
        }
    }
    let Some(mut client) = Arc::clone(feed).watch(&videos) else {
        app.server_metrics.rejected("overload");
        let sentence = format!(
            "the clients of this replica watch {} videos, as many as it follows; try again later",
            feed::MAX_VIDEOS
        );
        return unavailable(&sentence, 30);
    };
    let permit = principal.permit("read windows");
    sse::answer(app, "windows", permit, feed.versions(), move |_| {
        client.take()
    })
}
