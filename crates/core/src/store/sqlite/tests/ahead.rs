//! What is done ahead, as the table has it: rows that should be one would be read as one range all the same.

use super::*;

fn rows(folder: &TempDir) -> Vec<(u64, u64)> {
    let connection = shell(folder);
    let mut select =
        connection.prepare("SELECT first, last FROM ahead WHERE client = 'a' ORDER BY first").unwrap();
    let rows = select.query_map((), |row| Ok((codec::number(row, 0)?, codec::number(row, 1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_range_is_one_row() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..12).await;
    let acknowledge = async |numbers: &[u64], cursor| {
        let done = numbers.iter().map(|number| acknowledgement(Sequence::new(*number))).collect();
        store.acknowledge(&client(), done, Sequence::new(cursor)).await.unwrap();
        rows(&folder)
    };
    assert_eq!(acknowledge(&[4], 0).await, [(4, 4)]);
    assert_eq!(acknowledge(&[5], 0).await, [(4, 5)], "it follows");
    assert_eq!(acknowledge(&[3], 0).await, [(3, 5)], "it comes before");
    assert_eq!(acknowledge(&[9, 7, 11, 99], 0).await, [(3, 5), (7, 7), (9, 9), (11, 11)]);
    assert_eq!(acknowledge(&[8, 4], 0).await, [(3, 5), (7, 9), (11, 11)], "it closes a gap");
    assert_eq!(acknowledge(&[10, 9, 8, 7, 6], 0).await, [(3, 11)]);
    assert_eq!(acknowledge(&[12, 2], 4).await, [(5, 12)], "the cursor has passed the rest");
    assert_eq!(acknowledge(&[], 12).await, []);
}
