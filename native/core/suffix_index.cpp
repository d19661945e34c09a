#include "core/suffix_index.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <stdexcept>

namespace trimtab {
namespace {

constexpr int32_t kRoot = 0;
constexpr int32_t kNone = -1;
constexpr size_t kFirstTable = 64;

// Drawn once a process, so that nobody can write texts whose transitions collide.
uint64_t hash_seed() {
  static const uint64_t seed = [] {
    std::random_device device;
    return (uint64_t{device()} << 32) | device();
  }();
  return seed;
}

// The finalizer of MurmurHash3.
uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

}  // namespace

SuffixIndex::SuffixIndex() {
  static std::atomic<uint64_t> num_made{0};
  serial_ = ++num_made;
  add_state(0, kNone);
}

void SuffixIndex::extend(const int32_t* tokens, int64_t count) {
  if (count > kMaxTokens - num_tokens()) throw std::length_error("the text is too long to index");
  for (int64_t i = 0; i < count; ++i) append(tokens[i]);
}

size_t SuffixIndex::num_bytes() const {
  return sizeof(*this) + text_.capacity() * sizeof(int32_t) + states_.capacity() * sizeof(State) +
         table_.capacity() * sizeof(Slot);
}

SuffixMatch SuffixIndex::match() const {
  const int32_t state = states_[last_].link;
  if (state <= kRoot) return {};
  return {states_[state].length, states_[state].latest_end, state};
}

void SuffixIndex::advance(SuffixCursor& cursor, const int32_t* tokens, int64_t count) const {
  for (int64_t i = 0; i < count; ++i) {
    cursor.state = holder(cursor);
    const int32_t* target = find(cursor.state, tokens[i]);
    while (target == nullptr && cursor.state != kRoot) {
      cursor.state = states_[cursor.state].link;
      cursor.length = states_[cursor.state].length;
      target = find(cursor.state, tokens[i]);
    }
    if (target == nullptr) continue;
    cursor.state = *target;
    ++cursor.length;
  }
}

SuffixMatch SuffixIndex::match(const SuffixCursor& cursor) const {
  int32_t state = holder(cursor), length = cursor.length;
  // At the very end of the index nothing follows yet, but perhaps after a shorter match.
  while (state != kRoot && states_[state].num_transitions == 0) {
    state = states_[state].link;
    length = states_[state].length;
  }
  if (state == kRoot) return {};
  return {length, states_[state].latest_end, state};
}

int64_t SuffixIndex::continuation(const SuffixMatch& match, int64_t limit, bool periodic,
                                  int32_t* tokens, Evidence* evidence) const {
  if (match.length == 0) return 0;
  const int64_t begin = match.end, end = num_tokens();
  int64_t source = begin;
  int32_t state = match.state;
  for (int64_t i = 0; i < limit; ++i, ++source) {
    if (source == end) {
      if (!periodic || begin == end) return i;
      source = begin;
    }
    const int32_t token = text_[static_cast<size_t>(source)];
    if (token == kTextSeparator) return i;
    tokens[i] = token;
    evidence[i] = {};
    const int32_t* target = state == kRoot ? nullptr : find(state, token);
    if (target != nullptr) evidence[i] = evidence_for(state, token, *target);
    state = target == nullptr ? kRoot : *target;
  }
  return limit;
}

Evidence SuffixIndex::evidence_for(int32_t state, int32_t token, int32_t target) const {
  const State& from = states_[state];
  const auto previous = static_cast<size_t>(from.previous_end);
  return {.num_occurrences = static_cast<int32_t>(from.num_occurrences),
          .num_alike = static_cast<int32_t>(states_[target].num_occurrences),
          .is_disputed = from.num_transitions > 1,
          .is_repeated = previous != 0 && text_[previous] == token};
}

// The state that has the matched string now: since the cursor came to its state, that may have been
// split, and its shorter strings have moved to the one that it links to.
int32_t SuffixIndex::holder(const SuffixCursor& cursor) const {
  int32_t state = cursor.state;
  while (state != kRoot && cursor.length <= states_[states_[state].link].length)
    state = states_[state].link;
  return state;
}

void SuffixIndex::append(int32_t token) {
  note_occurrences();
  text_.push_back(token);
  const auto length = static_cast<int32_t>(text_.size());
  const int32_t added = add_state(length, kRoot);
  states_[added].latest_end = length;
  int32_t from = last_;
  last_ = added;
  int32_t* target = nullptr;
  while (from != kNone && (target = find(from, token)) == nullptr) {
    add_transition(from, token, added);
    from = states_[from].link;
  }
  if (from == kNone) return;
  const int32_t next = *target;
  const bool is_longest = states_[next].length == states_[from].length + 1;
  const int32_t link = is_longest ? next : split(from, token, next);
  states_[added].link = link;
}

// The text so far ends with all the states on the path of links of its own. Done just before the
// text grows, so that until then `latest_end` is of what came before.
void SuffixIndex::note_occurrences() {
  const auto end = static_cast<int32_t>(text_.size());
  ++states_[last_].num_occurrences;
  int32_t state = states_[last_].link;
  for (int hop = 0; hop < kMaxHops && state > kRoot; ++hop, state = states_[state].link) {
    states_[state].previous_end = states_[state].latest_end;
    states_[state].latest_end = end;
    ++states_[state].num_occurrences;
  }
}

int32_t SuffixIndex::add_state(int32_t length, int32_t link) {
  states_.push_back({.length = length, .link = link});
  return static_cast<int32_t>(states_.size()) - 1;
}

// Takes the strings of `state` up to those that `token` after `from` makes into a state of their
// own, which is returned.
int32_t SuffixIndex::split(int32_t from, int32_t token, int32_t state) {
  const int32_t added = add_state(states_[from].length + 1, states_[state].link);
  const State original = states_[state];
  states_[added].latest_end = original.latest_end;
  states_[added].previous_end = original.previous_end;
  states_[added].num_occurrences = original.num_occurrences;
  if (original.num_transitions > 0) add_transition(added, original.token, original.target);
  if (original.num_transitions == kMany) {
    Slot slot{state, 0, 0, original.last_token};
    do {
      slot = table_[place(state, slot.next_token)];
      add_transition(added, slot.token, slot.target);
    } while (slot.next_token != slot.token);
  }
  states_[state].link = added;
  for (int32_t* target = nullptr; from != kNone; from = states_[from].link) {
    target = find(from, token);
    if (target == nullptr || *target != state) break;
    *target = added;
  }
  return added;
}

const int32_t* SuffixIndex::find(int32_t state, int32_t token) const {
  const State& from = states_[state];
  if (from.num_transitions == 0) return nullptr;
  if (from.token == token) return &from.target;
  if (from.num_transitions == 1) return nullptr;
  const Slot& slot = table_[place(state, token)];
  return slot.state == kNone ? nullptr : &slot.target;
}

int32_t* SuffixIndex::find(int32_t state, int32_t token) {
  return const_cast<int32_t*>(static_cast<const SuffixIndex*>(this)->find(state, token));
}

// One that is not there yet.
void SuffixIndex::add_transition(int32_t state, int32_t token, int32_t target) {
  State& from = states_[state];
  if (from.num_transitions == 0) {
    from.num_transitions = 1;
    from.token = token;
    from.target = target;
    return;
  }
  if ((num_in_table_ + 1) * 3 > table_.size() * 2) grow_table();
  insert({state, token, target, from.num_transitions == kMany ? from.last_token : token});
  ++num_in_table_;
  from.num_transitions = kMany;
  from.last_token = token;
}

// Where in the table the transition is, or would be: a free slot. The table is never full.
size_t SuffixIndex::place(int32_t state, int32_t token) const {
  const uint64_t key =
      (uint64_t{static_cast<uint32_t>(state)} << 32) | static_cast<uint32_t>(token);
  const size_t last = table_.size() - 1;
  size_t i = static_cast<size_t>(mix(key ^ hash_seed())) & last;
  while (table_[i].state != kNone && (table_[i].state != state || table_[i].token != token))
    i = (i + 1) & last;
  return i;
}

void SuffixIndex::insert(const Slot& slot) { table_[place(slot.state, slot.token)] = slot; }

void SuffixIndex::grow_table() {
  std::vector<Slot> old(std::max(kFirstTable, table_.size() * 2), Slot{kNone, 0, 0, 0});
  old.swap(table_);
  for (const Slot& slot : old)
    if (slot.state != kNone) insert(slot);
}

}  // namespace trimtab
