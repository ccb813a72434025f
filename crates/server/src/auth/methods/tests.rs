use std::collections::BTreeSet;

use axum::body::Body;
use axum::routing::post;
use gitstafette_core::secret::Secret;
use http::StatusCode;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tower::ServiceExt;

use super::*;
use crate::auth::PeerCertificate;

/// The paths of all methods in a descriptor set.
fn methods_of(descriptors: &[u8]) -> Vec<String> {
    let set = FileDescriptorSet::decode(descriptors).unwrap();
    let mut paths = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    paths
}

#[test]
fn every_method_of_the_generated_services_is_listed() {
    let sets = [
        gitstafette_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let generated: BTreeSet<String> = sets.into_iter().flat_map(methods_of).collect();
    let listed: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert!(generated.len() > 15, "the descriptors were read");
    assert_eq!(generated, listed);
    assert_eq!(listed.len(), METHODS.len(), "each once");
}

/// Calls a path of a router that answers every method, and returns the status of the answer.
async fn call(guard: MethodGuard, path: &str, token: Option<&str>) -> Code {
    let routes = Router::new().route("/{service}/{method}", post(async || StatusCode::OK));
    let mut request = http::Request::post(path).body(Body::empty()).unwrap();
    if let Some(token) = token {
        request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    }
    let response = guard.protect(routes).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}

fn with_tokens() -> MethodGuard {
    let auth = ClientAuth {
        tokens: vec![Secret::new("client")],
        operator_tokens: vec![Secret::new("operator")],
        publisher_tokens: vec![Secret::new("publisher")],
        ..ClientAuth::default()
    };
    MethodGuard { auth, verifies_webhooks: true, limits: CallLimits::new(100) }
}

#[tokio::test]
async fn each_token_opens_its_methods_and_no_others() {
    const CALLERS: [Option<&str>; 5] =
        [None, Some("wrong"), Some("client"), Some("publisher"), Some("operator")];
    for (path, required) in METHODS {
        let (no, not) = (Code::PermissionDenied, Code::Unauthenticated);
        let expected = match required {
            Required::Nothing => [Code::Ok; 5],
            Required::Client => [not, not, Code::Ok, no, Code::Ok],
            Required::Publisher => [not, not, no, Code::Ok, no],
            Required::PublisherOrSignature => [Code::Ok, not, no, Code::Ok, no],
            Required::Operator => [not, not, no, no, Code::Ok],
        };
        for (token, expected) in CALLERS.into_iter().zip(expected) {
            assert_eq!(call(with_tokens(), path, token).await, expected, "{path} with {token:?}");
        }
    }
}

#[tokio::test]
async fn a_method_that_is_not_listed_is_closed_to_all() {
    for token in [None, Some("client"), Some("publisher"), Some("operator")] {
        for path in ["/gitstafette.v1.Gitstafette/New", "/gitstafette.v1.New/Subscribe"] {
            assert_eq!(call(with_tokens(), path, token).await, Code::Unimplemented, "{path} with {token:?}");
        }
    }
    let open = MethodGuard { auth: ClientAuth::default(), verifies_webhooks: false, ..with_tokens() };
    assert_eq!(call(open, "/gitstafette.v1.Gitstafette/New", None).await, Code::Unimplemented);
}

#[tokio::test]
async fn without_secrets_a_push_needs_a_token() {
    let unsigned = MethodGuard { verifies_webhooks: false, ..with_tokens() };
    assert_eq!(call(unsigned, PUSH, None).await, Code::Unauthenticated);
}

#[test]
fn certificates_are_checked_before_tokens() {
    let auth = ClientAuth { certificate: true, ..with_tokens().auth };
    let guard = MethodGuard { auth, verifies_webhooks: true, limits: CallLimits::new(100) };
    let peer = |certificate| Peer::new(([127, 0, 0, 1], 1).into(), certificate);
    let (with, without) = (peer(PeerCertificate::Verified), peer(PeerCertificate::None));
    for required in
        [Required::Client, Required::Publisher, Required::PublisherOrSignature, Required::Operator]
    {
        for token in [None, Some(&b"Bearer client"[..]), Some(b"Bearer publisher"), Some(b"Bearer operator")]
        {
            for peer in [None, Some(&without)] {
                let refused = guard.authorize(required, token, peer);
                assert_eq!(refused, Err(AuthError::Certificate), "{required:?}");
            }
        }
    }
    assert_eq!(guard.authorize(Required::Client, Some(b"Bearer client"), Some(&with)), Ok(None));
    assert_eq!(guard.authorize(Required::Client, None, Some(&with)), Err(AuthError::Missing));
    assert_eq!(guard.authorize(Required::Nothing, None, None), Ok(None));
}
