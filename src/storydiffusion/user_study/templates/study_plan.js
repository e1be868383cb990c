// Which comparisons a participant gets, in which order and on which sides: a function of study and participant code.

// A generator of numbers in [0, 1), seeded by a text: FNV-1a hashes it, mulberry32 draws.
function generator(text) {
  let state = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 0x01000193);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled(list, random) {
  const order = list.slice();
  for (let last = order.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

// Returns a list of {comparison, left}; `left` says whether the comparison's 'first' or 'second' is on the left.
// Every group (two methods and a question) gets the same number of comparisons, ± 1, and within a group each method
// is on the left equally often, ± 1.
function plan(study, code) {
  const random = generator(study.study + " " + code);
  const groups = new Map();
  for (const comparison of shuffled(study.comparisons, random)) {
    if (!groups.has(comparison.group)) groups.set(comparison.group, []);
    groups.get(comparison.group).push(comparison);
  }
  const places = Math.min(study.per_person, study.comparisons.length);
  const asked = [];
  const queues = [...groups.values()].map((group) => ({ group, turn: random() < 0.5 ? 0 : 1 }));
  for (let round = 0; asked.length < places; round++) {
    for (const { group, turn } of queues) {
      if (round < group.length && asked.length < places) {
        asked.push({ comparison: group[round], left: (round + turn) % 2 ? "first" : "second" });
      }
    }
  }
  return shuffled(asked, random);
}
