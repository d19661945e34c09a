// Indexes of texts, and drafts by lookup in them.
#include <nanobind/stl/optional.h>

#include <limits>
#include <optional>
#include <vector>

#include "bindings/module.h"
#include "core/suffix_index.h"
#include "core/text_lookup.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr int64_t kManyTokens = 2048;  // take long enough to let other threads run meanwhile

// A one-dimensional buffer of int32: array("i"), or a numpy array. While it is held, Python cannot
// resize it. Much cheaper to get than an ndarray.
class Int32Buffer {
 public:
  // Throws TypeError for anything else.
  explicit Int32Buffer(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_CONTIG_RO | PyBUF_FORMAT) != 0)
      nb::raise_python_error();
    if (view_.ndim != 1 || view_.itemsize != sizeof(int32_t) || view_.format == nullptr ||
        view_.format[0] != 'i' || view_.format[1] != '\0') {
      PyBuffer_Release(&view_);
      throw nb::type_error("tokens: must be a contiguous one-dimensional buffer of int32");
    }
  }
  ~Int32Buffer() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }
  Int32Buffer(Int32Buffer&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
  Int32Buffer& operator=(Int32Buffer&&) = delete;

  const int32_t* data() const { return static_cast<const int32_t*>(view_.buf); }
  int64_t length() const { return view_.len / static_cast<int64_t>(sizeof(int32_t)); }

 private:
  Py_buffer view_{};
};

template <typename T>
nb::list listed(const T* values, int64_t count) {
  nb::list list;
  for (int64_t i = 0; i < count; ++i) list.append(static_cast<long>(values[i]));
  return list;
}

nb::object continuation(const trimtab::SuffixIndex& index, const trimtab::SuffixMatch& match,
                        int64_t limit, bool periodic) {
  if (limit < 0) throw std::invalid_argument("limit: must not be negative");
  std::vector<int32_t> tokens(static_cast<size_t>(limit));
  std::vector<trimtab::Evidence> evidence(static_cast<size_t>(limit));
  const int64_t count = index.continuation(match, limit, periodic, tokens.data(), evidence.data());
  nb::list facts;
  for (int64_t i = 0; i < count; ++i) {
    const trimtab::Evidence& one = evidence[static_cast<size_t>(i)];
    facts.append(
        nb::make_tuple(one.num_occurrences, one.num_alike, one.is_disputed, one.is_repeated));
  }
  return nb::make_tuple(match.length, match.end, listed(tokens.data(), count), facts);
}

struct Task {
  trimtab::TextLookup* lookup;
  Int32Buffer text;
  int64_t limit;
  const trimtab::SuffixIndex* others;
  trimtab::TextDraft draft;
};

void run(std::vector<Task>& tasks, int64_t budget) {
  for (Task& task : tasks) {
    budget -= task.lookup->extend(task.text.data(), task.text.length(), budget);
    if (task.lookup->num_indexed() == task.text.length())
      task.lookup->draft(task.text.data(), task.text.length(), task.limit, task.others, task.draft);
  }
}

nb::list look_up(const nb::list& lookups, const nb::list& texts, const nb::list& limits,
                 const std::optional<nb::list>& others, int64_t budget) {
  const size_t count = lookups.size();
  if (texts.size() != count || limits.size() != count || (others && others->size() != count))
    throw std::invalid_argument("one text, one limit and one index of others for each lookup");
  if (budget < 0) throw std::invalid_argument("budget: must not be negative");
  std::vector<Task> tasks;
  tasks.reserve(count);
  int64_t num_new = 0;
  for (size_t i = 0; i < count; ++i) {
    const trimtab::SuffixIndex* other =
        others ? nb::cast<const trimtab::SuffixIndex*>((*others)[i]) : nullptr;
    tasks.push_back({nb::cast<trimtab::TextLookup*>(lookups[i]),
                     Int32Buffer(texts[i]),
                     nb::cast<int64_t>(limits[i]),
                     other,
                     {}});
    const Task& task = tasks.back();
    if (task.lookup == nullptr) throw nb::type_error("lookups: must not be None");
    if (task.limit < 0) throw std::invalid_argument("limits: must not be negative");
    if (task.text.length() < task.lookup->num_indexed())
      throw std::invalid_argument("texts: a text has become shorter");
    num_new += task.text.length() - task.lookup->num_indexed();
  }
  if (num_new > kManyTokens) {
    nb::gil_scoped_release released;
    run(tasks, budget);
  } else {
    run(tasks, budget);
  }
  nb::list drafts;
  for (const Task& task : tasks) {
    const auto length = static_cast<int64_t>(task.draft.tokens.size());
    if (length == 0)
      drafts.append(nb::none());
    else
      drafts.append(nb::make_tuple(listed(task.draft.tokens.data(), length),
                                   listed(task.draft.confidences.data(), length)));
  }
  return drafts;
}

}  // namespace

void bind_lookup(nb::module_& m) {
  m.attr("SUFFIX_MAX_HOPS") = trimtab::SuffixIndex::kMaxHops;
  m.attr("TEXT_SEPARATOR") = trimtab::kTextSeparator;

  nb::class_<trimtab::SuffixCursor>(m, "SuffixCursor").def(nb::init<>());

  nb::class_<trimtab::SuffixIndex>(m, "SuffixIndex", "See native/core/suffix_index.h.")
      .def(nb::init<>())
      .def_prop_ro("num_tokens", &trimtab::SuffixIndex::num_tokens)
      .def_prop_ro("num_bytes", &trimtab::SuffixIndex::num_bytes)
      .def(
          "extend",
          [](trimtab::SuffixIndex& index, nb::handle tokens) {
            const Int32Buffer buffer(tokens);
            index.extend(buffer.data(), buffer.length());
          },
          "tokens"_a)
      .def(
          "match",
          [](const trimtab::SuffixIndex& index, int64_t limit) {
            return continuation(index, index.match(), limit, true);
          },
          "limit"_a = 0,
          "(length, end, tokens, evidence) of the longest suffix that occurred before: its latest "
          "earlier occurrence ends before token `end`; up to `limit` tokens that followed, and the "
          "evidence for each: (occurrences, alike, disputed, repeated).")
      .def(
          "follow",
          [](const trimtab::SuffixIndex& index, trimtab::SuffixCursor& cursor, nb::handle tokens,
             int64_t limit) {
            const Int32Buffer buffer(tokens);
            index.advance(cursor, buffer.data(), buffer.length());
            return continuation(index, index.match(cursor), limit, false);
          },
          "cursor"_a, "tokens"_a, "limit"_a = 0,
          "Append tokens to the text that the cursor follows; the longest suffix of it that occurs "
          "in the index, as in `match`.");

  nb::class_<trimtab::TextLookup>(m, "TextLookup", "See native/core/text_lookup.h.")
      .def(nb::init<>())
      .def_prop_ro("num_indexed", &trimtab::TextLookup::num_indexed)
      .def_prop_ro("num_bytes", &trimtab::TextLookup::num_bytes);

  m.def("look_up", &look_up, "lookups"_a, "texts"_a, "limits"_a, "others"_a.none() = nb::none(),
        "budget"_a = std::numeric_limits<int64_t>::max(),
        "For each lookup: its text has grown to texts[i]; up to limits[i] tokens that may follow, "
        "as (token_ids, confidences), or None. At most `budget` tokens are taken in, in order; "
        "texts that are not taken in wholly get None. `others`: an index of other texts for each, "
        "or None. Raises ValueError if a text has become shorter.");
}
