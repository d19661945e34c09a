#include "core/text_lookup.h"

#include <algorithm>
#include <array>

namespace trimtab {
namespace {

// Columns of the classes: up to so many equal tokens.
constexpr std::array<int64_t, 8> kLastOfColumn = {1, 2, 3, 4, 6, 9, 14, 31};
using Row = std::array<uint8_t, kLastOfColumn.size() + 1>;
constexpr Row kOnce = {1, 3, 5, 6, 7, 9, 12, 14, 15};
constexpr Row kTwice = {4, 8, 10, 10, 10, 13, 13, 15, 15};
constexpr Row kOften = {8, 11, 11, 13, 13, 13, 13, 15, 15};

uint8_t disputed_confidence(const Evidence& evidence) {
  const auto of_hundred = int64_t{100} * evidence.num_alike;
  const auto share = of_hundred / std::max(evidence.num_occurrences, 1);
  if (evidence.is_repeated) return share < 50 ? 2 : share < 80 ? 4 : 8;
  return share < 40 ? 0 : share < 65 ? 1 : 2;
}

}  // namespace

uint8_t lookup_confidence(int64_t num_equal, const Evidence& evidence) {
  if (evidence.is_disputed) return disputed_confidence(evidence);
  size_t column = 0;
  while (column < kLastOfColumn.size() && num_equal > kLastOfColumn[column]) ++column;
  const int32_t count = evidence.num_occurrences;
  return (count > 2 ? kOften : count == 2 ? kTwice : kOnce)[column];
}

int64_t TextLookup::extend(const int32_t* text, int64_t length, int64_t limit) {
  const int64_t begin = index_.num_tokens();
  const int64_t count = std::min(length - begin, limit);
  index_.extend(text + begin, count);
  return count;
}

void TextLookup::draft(const int32_t* text, int64_t length, int64_t limit,
                       const SuffixIndex* others, TextDraft& draft) {
  const auto room = static_cast<size_t>(limit);
  draft.tokens.resize(room);
  evidence_.resize(room);
  SuffixMatch match = index_.match();
  int64_t count = 0;
  if (others != nullptr) {
    const SuffixMatch other = match_others(text, length, *others);
    if (other.length > match.length)
      count = others->continuation(other, limit, false, draft.tokens.data(), evidence_.data());
    if (count > 0) match = other;
  }
  if (count == 0)
    count = index_.continuation(match, limit, true, draft.tokens.data(), evidence_.data());
  draft.tokens.resize(static_cast<size_t>(count));
  draft.confidences.clear();
  for (int64_t i = 0; i < count; ++i)
    draft.confidences.push_back(
        lookup_confidence(match.length + i, evidence_[static_cast<size_t>(i)]));
}

SuffixMatch TextLookup::match_others(const int32_t* text, int64_t length,
                                     const SuffixIndex& others) {
  if (followed_ != others.serial() || length - num_followed_ > kMaxFollowed) {
    followed_ = others.serial();
    cursor_ = {};
    num_followed_ = std::max<int64_t>(0, length - kMaxFollowed);
  }
  others.advance(cursor_, text + num_followed_, length - num_followed_);
  num_followed_ = length;
  return others.match(cursor_);
}

}  // namespace trimtab
