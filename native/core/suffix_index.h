// An index of a text of tokens: where has its end occurred before, and what followed there?
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trimtab {

// Stands between texts in an index of several: a match never contains it, a continuation ends
// there.
inline constexpr int32_t kTextSeparator = -1;

// A stretch of an indexed text that equals the end of some text. Valid until the index is extended.
struct SuffixMatch {
  int32_t length = 0;  // in tokens; 0: no match
  int32_t end = 0;     // the token that followed is number `end` of the indexed text
  int32_t state = 0;   // of the automaton
};

// How far the end of another text is matched. Stays valid when the index is extended.
struct SuffixCursor {
  int32_t state = 0;
  int32_t length = 0;
};

// What earlier occurrences of the matched text, with the tokens of the continuation before this
// one, say about a token. An occurrence at the end of the text, with nothing after it, is none.
struct Evidence {
  int32_t num_occurrences = 1;
  int32_t num_alike = 1;     // of them, those that went on with this token and then with another
  bool is_disputed = false;  // they did not all go on with this token; the latest did
  bool is_repeated = false;  // the latest but one did as well
};

// The suffix automaton, built online (Blumer, Blumer, Haussler, Ehrenfeucht, Chen and Seiferas,
// "The smallest automaton recognizing the subwords of a text", 1985): at most 2 n states and 3 n
// transitions for n tokens. Each state has its first transition with it, and most have no other;
// further ones lie in one table with open addressing, keyed by (state, token).
//
// Besides, each state keeps where it occurred last and the time before, and how often. A new token
// makes an occurrence of every state on the path of suffix links, which is as long as the text if
// the text repeats itself, so only the first kMaxHops are updated. So an occurrence inside of
// kMaxHops longer strings that all occurred before does not count; otherwise `SuffixMatch::end` is
// exactly the latest, and `Evidence` is exact.
//
// Extending by a token takes amortized constant time (0.1 to 0.3 us on a Zen 3 core, whatever the
// text) and no allocation but amortized growth. Memory: 70 to 100 bytes a token as measured on
// code, random and repetitive texts, at most 200.
class SuffixIndex {
 public:
  static constexpr int kMaxHops = 32;
  static constexpr int64_t kMaxTokens = int64_t{1} << 29;  // states are counted in int32

  SuffixIndex();

  // Appends. Throws std::length_error beyond kMaxTokens, and changes nothing then.
  void extend(const int32_t* tokens, int64_t count);
  int64_t num_tokens() const { return static_cast<int64_t>(text_.size()); }
  // Of this index alone, of all that ever were in this process.
  uint64_t serial() const { return serial_; }
  // That are allocated.
  size_t num_bytes() const;

  // The longest suffix of the text that occurred before (it may overlap that occurrence), and its
  // latest occurrence before this one.
  SuffixMatch match() const;

  // Appends tokens to the text that the cursor follows.
  void advance(SuffixCursor& cursor, const int32_t* tokens, int64_t count) const;
  // The longest suffix of that text that occurs anywhere in the index and has something after it.
  SuffixMatch match(const SuffixCursor& cursor) const;

  // What followed a match: up to `limit` tokens, and the evidence for each. `periodic`: where the
  // end of the indexed text is reached, what follows the match begins again, so that a loop goes
  // on; else, as at a separator, the continuation ends. Returns how many there are.
  int64_t continuation(const SuffixMatch& match, int64_t limit, bool periodic, int32_t* tokens,
                       Evidence* evidence) const;

 private:
  static constexpr uint32_t kMany = 2;  // transitions, or more

  struct alignas(32) State {
    int32_t length;            // of its longest string
    int32_t link;              // the state of the longest suffix that is not in this one; root: -1
    int32_t latest_end = 0;    // number of tokens up to the end of its last occurrence; 0: none
    int32_t previous_end = 0;  // of the one before
    uint32_t num_transitions : 2 = 0;  // up to kMany
    uint32_t num_occurrences : 30 = 0;
    int32_t token = 0;  // of the first transition
    int32_t target = 0;
    int32_t last_token = 0;  // of the newest transition in the table
  };
  struct Slot {
    int32_t state;  // -1: free
    int32_t token;
    int32_t target;
    int32_t next_token;  // of the one of this state that came in before; its own: there is none
  };

  Evidence evidence_for(int32_t state, int32_t token, int32_t target) const;
  void append(int32_t token);
  int32_t holder(const SuffixCursor& cursor) const;
  void note_occurrences();
  int32_t add_state(int32_t length, int32_t link);
  int32_t split(int32_t from, int32_t token, int32_t state);
  const int32_t* find(int32_t state, int32_t token) const;
  int32_t* find(int32_t state, int32_t token);
  void add_transition(int32_t state, int32_t token, int32_t target);
  size_t place(int32_t state, int32_t token) const;
  void insert(const Slot& slot);
  void grow_table();

  uint64_t serial_;
  std::vector<int32_t> text_;
  std::vector<State> states_;
  std::vector<Slot> table_;  // a power of two of them
  size_t num_in_table_ = 0;
  int32_t last_ = 0;  // the state of the whole text
};

}  // namespace trimtab
