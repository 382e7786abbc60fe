//! Services and slices.

use super::*;

#[test]
fn a_service_that_others_route_has_no_slice_of_ours() {
    let mut taken = scene(held(Some("a")), vec![candidate("a")]);
    taken.traffic.others = vec!["theirs".to_owned()];
    taken.traffic.own = vec![filled("a")];
    let course = course_of(taken);
    assert_eq!(retreats(&course), ["delete consullock-billing-ipv4"]);
    assert!(course.advance.is_empty() && course.dress.is_some(), "the pod leads all the same");
    let refusal = Refusal::Taken { slice: "theirs".to_owned() };
    assert_eq!(course.told.routing, Some(Routing::Refused(refusal)));
}

#[test]
fn what_somebody_changed_in_a_slice_is_put_right_over_that_version() {
    type Edit = fn(&mut EndpointSlice);
    let edits: [Edit; 6] = [
        |slice| slice.endpoints[0].addresses = vec!["10.0.0.8".to_owned()],
        |slice| slice.endpoints.push(slice.endpoints[0].clone()),
        |slice| slice.ports = None,
        |slice| slice.metadata.annotations = None,
        |slice| {
            let labels = slice.metadata.labels.as_mut().unwrap();
            labels.insert(election::SERVICE_LABEL.to_owned(), "other".to_owned());
        },
        |slice| slice.endpoints.clear(),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let mut led = scene(held(Some("a")), vec![candidate("a")]);
        led.badged = vec![badged("a", "41")];
        let mut slice = (*filled("a")).clone();
        edit(&mut slice);
        led.traffic.own = vec![Arc::new(slice)];
        let course = course_of(led);
        let [advance] = &course.advance[..] else { panic!("edit {number}: {course:?}") };
        assert_eq!(advance.slice.metadata.resource_version.as_deref(), Some("s-1"));
        assert_eq!(advance.slice.endpoints, filled("a").endpoints);
        assert!(course.retreat.is_empty(), "edit {number}");
    }
}

#[test]
fn an_endpoint_of_somebody_else_is_taken_out_at_once() {
    let mut led = scene(held(Some("a")), vec![candidate("a")]);
    led.badged = vec![badged("a", "41")];
    let mut slice = (*filled("a")).clone();
    let stranger = filled("b").endpoints[0].clone();
    slice.endpoints.push(stranger);
    led.traffic.own = vec![Arc::new(slice)];
    assert_eq!(retreats(&course_of(led)), ["empty consullock-billing-ipv4"]);
}

#[test]
fn a_slice_of_a_family_that_the_service_has_no_more_is_removed() {
    let mut led = scene(held(Some("a")), vec![candidate("a")]);
    let mut six = (*filled("a")).clone();
    six.metadata.name = Some(slice_name("billing", "IPv6"));
    led.traffic.own = vec![filled("a"), Arc::new(six)];
    let course = course_of(led);
    assert_eq!(retreats(&course), ["delete consullock-billing-ipv6"]);
    assert!(course.advance.is_empty());
}

#[test]
fn what_the_pod_lacks_is_told_and_the_rest_is_routed() {
    let mut led = scene(held(Some("a")), vec![candidate("a")]);
    led.backend.as_mut().unwrap().ports.clear();
    let course = course_of(led);
    let lacks = "a container port named web".to_owned();
    let partly = |reason, lacks| Some(Routing::Partly { pod: "a".into(), reason, lacks });
    assert_eq!(course.told.routing, partly(Detail::PodLacksPort, lacks));
    assert_eq!(course.advance[0].slice.endpoints.len(), 1);
    let mut led = scene(held(Some("a")), vec![candidate("a")]);
    led.backend.as_mut().unwrap().addresses = vec!["fd00::7".parse().unwrap()];
    let lacks = "an address of IPv4".to_owned();
    let told = course_of(led).told.routing;
    assert_eq!(told, partly(Detail::PodLacksAddress, lacks));
}
