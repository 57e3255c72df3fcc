//! Actors that do not answer are named, and the others are heard.

use actix::{AsyncContext as _, Context, Handler, Message};

use super::*;
use crate::overview::{ActorName, Overview, OverviewError};

/// Keeps an actor busy until the sender of this is dropped.
#[derive(Message)]
#[rtype(result = "()")]
struct Hold(Receiver<()>);

macro_rules! can_be_held {
    ($($actor:ty),*) => {$(
        impl Handler<Hold> for $actor {
            type Result = ();

            #[expect(clippy::disallowed_methods, reason = "the mailbox is to stop")]
            fn handle(&mut self, Hold(end): Hold, ctx: &mut Context<Self>) {
                ctx.wait(actix::fut::wrap_future(async { drop(end.await) }));
            }
        }
    )*};
}

can_be_held!(Router, Gpu, Model, crate::Tenant);

/// Two seconds pass at once when nobody has anything to do.
async fn partial(node: &Node) -> Result<Overview, OverviewError> {
    tokio::time::pause();
    let overview = Overview::partial(&node.router).await;
    tokio::time::resume();
    overview
}

#[actix_rt::test]
async fn busy_model_is_named_and_the_others_are_heard() {
    let node = Node::start(Setup::default()).await;
    let (release, held) = tokio::sync::oneshot::channel();
    node.model.do_send(Hold(held));
    let overview = partial(&node).await.unwrap();
    let model = ActorName::Model(ModelId::from("m"));
    assert_eq!(overview.unresponsive, std::slice::from_ref(&model));
    assert!(overview.models.is_empty());
    assert_eq!(overview.tenants[0].id.as_str(), "t");
    assert_eq!(overview.gpu.engines, [ModelId::from("m")]);
    tokio::time::pause();
    let whole = Overview::of(&node.router).await.unwrap_err();
    tokio::time::resume();
    assert_eq!(whole, OverviewError::late(model));
    drop(release);
    let overview = Overview::of(&node.router).await.unwrap();
    assert_eq!(overview.models[0].id.as_str(), "m");
}

#[actix_rt::test]
async fn busy_gpu_and_tenant_are_named_and_the_model_is_heard() {
    let node = Node::start(Setup::default()).await;
    let actors = node.router.send(ListActors).await.unwrap();
    let (_release_gpu, held) = tokio::sync::oneshot::channel();
    actors.gpu.do_send(Hold(held));
    let (_release_tenant, held) = tokio::sync::oneshot::channel();
    actors.tenants[0].1.do_send(Hold(held));
    let overview = partial(&node).await.unwrap();
    let tenant = ActorName::Tenant(TenantId::from("t"));
    assert_eq!(overview.unresponsive, [ActorName::Gpu, tenant]);
    assert_eq!(overview.models[0].id.as_str(), "m");
}

#[actix_rt::test]
async fn busy_router_is_no_shutdown() {
    let node = Node::start(Setup::default()).await;
    let (_release, held) = tokio::sync::oneshot::channel();
    node.router.do_send(Hold(held));
    let error = partial(&node).await.unwrap_err();
    assert_eq!(error, OverviewError::late(ActorName::Router));
    assert_eq!(error.to_string(), "actor router did not answer within 2 s");
}
