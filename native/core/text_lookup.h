// Drafts by lookup: what followed the end of a text when it occurred before.
//
// In the text itself (Saxena, "Prompt lookup decoding", 2023) or in others (Oliaro et al.,
// "SuffixDecoding", arXiv 2411.04975); the longer match wins.
#pragma once

#include <cstdint>
#include <vector>

#include "core/suffix_index.h"

namespace trimtab {

struct TextDraft {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> confidences;  // of each token, see `lookup_confidence`
};

// A class in [0, 16); higher is surer. `num_equal`: tokens that equal those before the occurrence
// that the token is taken from: those of the match, and those of the draft before it. What tells
// the most is whether earlier occurrences dispute the token, however long the match is; then how
// many agree; then the length. The classes are those that held-out text tells apart (docs/log.md).
uint8_t lookup_confidence(int64_t num_equal, const Evidence& evidence);

// What is known of one text that grows. The memory is that of its index.
class TextLookup {
 public:
  static constexpr int64_t kMaxFollowed = 64;  // tokens that are matched anew with other texts

  int64_t num_indexed() const { return index_.num_tokens(); }
  size_t num_bytes() const { return sizeof(*this) - sizeof(index_) + index_.num_bytes(); }

  // Takes in up to `limit` more tokens of `text`, which begins with those taken in before. Returns
  // how many.
  int64_t extend(const int32_t* text, int64_t length, int64_t limit);

  // Up to `limit` tokens that may follow `text`, which has been taken in wholly. `others`: null, or
  // an index of other texts.
  void draft(const int32_t* text, int64_t length, int64_t limit, const SuffixIndex* others,
             TextDraft& draft);

 private:
  SuffixMatch match_others(const int32_t* text, int64_t length, const SuffixIndex& others);

  SuffixIndex index_;
  SuffixCursor cursor_;       // in the others
  uint64_t followed_ = 0;     // their serial
  int64_t num_followed_ = 0;  // tokens of the text that the cursor has seen
  std::vector<Evidence> evidence_;
};

}  // namespace trimtab
