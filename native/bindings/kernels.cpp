// Kernel paths, and single kernels of a path for tests.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/stored_integers.h"
#include "core/isa.h"

namespace nb = nanobind;
using namespace trimtab;

namespace {

using FloatMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatVector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutputMatrix = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
template <class T>
using Array = nb::ndarray<nb::numpy, T>;

// 64-byte aligned, every byte 0xff until written (as floats: NaN).
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(bytes) {
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, round_up(bytes + 1, 64))));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0xff, static_cast<size_t>(round_up(bytes + 1, 64)));
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  template <class T>
  Array<T> copy() const {
    size_t count = static_cast<size_t>(bytes_) / sizeof(T);
    T* values = new T[count];
    std::memcpy(values, data_.get(), count * sizeof(T));
    nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Array<T>(values, {count}, owner);
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  int64_t bytes_;
};

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

struct KernelActivations {
  Buffer data, scales, starts, sums;
  int64_t rows, row_bytes;

  Activations view() const {
    return {data.as<uint8_t>(), row_bytes, scales.as<float>(), starts.as<int32_t>(),
            sums.as<float>()};
  }
};

// A matrix packed by one path, and that path's GEMM on it.
class KernelMatrix {
 public:
  KernelMatrix(const std::string& isa, const std::string& format, FloatMatrix weights,
               int group_size, const std::vector<int64_t>& splits)
      : table_(kernel_table(select_isa(isa))),
        shape_(checked_shape(format, group_size, weights)),
        data_(packed_bytes(shape_)),
        scales_(shape_.scaled_rows() ? shape_.padded_rows * 4 : 0) {
    shape_.data = data_.as<uint8_t>();
    shape_.scales = scales_.as<float>();
    int64_t first = 0;
    std::vector<int64_t> bounds = splits;
    bounds.push_back(num_panels());
    for (int64_t last : bounds) {
      check_panels(first, last, false);
      table_.gemm.pack(shape_, data_.as<uint8_t>(), scales_.as<float>(),
                       weights.data() + first * kPanel * shape_.cols, first, last);
      first = last;
    }
  }

  // Integers as they are: core/packing.h.
  KernelMatrix(const std::string& isa, const MatrixFormat& format, int64_t rows, int64_t cols,
               const nb::tuple& integers)
      : table_(kernel_table(select_isa(isa))),
        shape_(packed_shape(format, rows, cols)),
        data_(packed_bytes(shape_)),
        scales_(shape_.scaled_rows() ? shape_.padded_rows * 4 : 0) {
    shape_.data = data_.as<uint8_t>();
    shape_.scales = scales_.as<float>();
    pack_integers(shape_, data_.as<uint8_t>(), scales_.as<float>(),
                  stored_integers("weights", integers, shape_));
  }

  // Row `row` in float32.
  Array<float> dequantize(int64_t row) const {
    require(0 <= row && row < shape_.rows && activation_starts(shape_) != 0,
            "a row of a matrix of integers");
    Buffer out(shape_.cols * 4);
    dequantize_row(shape_, row, out.as<float>());
    return out.copy<float>();
  }

  int64_t num_panels() const { return shape_.padded_rows / kPanel; }
  int64_t padded_cols() const { return shape_.padded_cols; }
  const Buffer& data() const { return data_; }
  const Buffer& scales() const { return scales_; }

  // Rows of x in the form that `gemm` reads, prepared `step` rows at a time.
  KernelActivations prepare(FloatMatrix x, int64_t step) const {
    int64_t rows = static_cast<int64_t>(x.shape(0)), cols = static_cast<int64_t>(x.shape(1));
    require(cols == shape_.cols, "activations must have as many columns as the weights");
    require(step > 0, "step must be positive");
    const int64_t row_bytes = table_.gemm.activation_bytes(shape_.format, shape_.padded_cols);
    const int64_t starts = activation_starts(shape_);
    const int64_t scales = starts == 0 ? 0 : shape_.groups();
    KernelActivations result = {Buffer(rows * row_bytes),
                                Buffer(rows * scales * 4),
                                Buffer(rows * starts * 4),
                                Buffer(rows * scales * 4),
                                rows,
                                row_bytes};
    for (int64_t first = 0; first < rows; first += step) {
      int64_t count = rows - first < step ? rows - first : step;
      table_.gemm.prepare(shape_, x.data() + first * cols, cols, count, result.view(), first);
    }
    return result;
  }

  void gemm(const KernelActivations& a, OutputMatrix out, int64_t m0, int64_t m1, int64_t panel0,
            int64_t panel1, std::optional<FloatVector> bias, int epilogue) const {
    require(epilogue >= 0 && epilogue <= 3, "epilogue must be 0..3");
    bool gated = epilogue >= 2;
    require(!gated || shape_.rows % (2 * kPanel) == 0, "gated epilogues need rows % 32 == 0");
    check_panels(panel0, panel1, gated);
    require(0 <= m0 && m0 <= m1 && m1 <= a.rows && m1 <= static_cast<int64_t>(out.shape(0)),
            "row range out of bounds");
    int64_t columns = gated ? shape_.rows / 2 : shape_.rows;
    require(static_cast<int64_t>(out.shape(1)) >= columns && out.stride(1) == 1,
            "out is too narrow or not row-major");
    require(!bias || static_cast<int64_t>(bias->shape(0)) == shape_.rows, "bias needs [rows]");
    GemmOutput output = {out.data(), out.stride(0), bias ? bias->data() : nullptr,
                         static_cast<Epilogue>(epilogue)};
    nb::gil_scoped_release release;
    table_.gemm.gemm(shape_, a.view(), m0, m1, panel0, panel1, output);
  }

 private:
  static PackedMatrix checked_shape(const std::string& format, int group_size,
                                    const FloatMatrix& weights) {
    const auto weight_format =
        choice<WeightFormat>("weight format", format, {"f32", "bf16", "int8", "int4"});
    require(group_size == 32 || group_size == 64 || group_size == 128 ||
                (group_size == 0 && weight_format != WeightFormat::int4),
            "group_size must be 32, 64 or 128");
    require(static_cast<int64_t>(weights.shape(1)) <= kMaxCols, "too many columns");
    return packed_shape({.weights = weight_format, .group_size = group_size},
                        static_cast<int64_t>(weights.shape(0)),
                        static_cast<int64_t>(weights.shape(1)));
  }

  void check_panels(int64_t first, int64_t last, bool even) const {
    require(0 <= first && first <= last && last <= num_panels(), "panel range out of bounds");
    even = even || (shape_.group_size != 0 && shape_.format != WeightFormat::fp8);
    require(!even || (first % 2 == 0 && last % 2 == 0), "panel bounds must be even");
  }

  const KernelTable& table_;
  PackedMatrix shape_;
  Buffer data_, scales_;
};

void bind_isa(nb::module_& m) {
  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : available_isas()) names.push_back(isa_name(isa));
        return names;
      },
      "Kernel paths that can run on this machine, the best first.");
  m.def(
      "missing_features",
      [](const std::string& isa) { return missing_features(isa_from_name(isa)); }, nb::arg("isa"),
      "CPU features that a kernel path needs and this machine lacks.");
  m.def(
      "select_isa", [](const std::string& forced) { return isa_name(select_isa(forced)); },
      nb::arg("forced") = "",
      "The best kernel path of this machine, or the forced one; ValueError when it cannot run.");
}

void bind_gemm(nb::module_& m) {
  nb::class_<KernelActivations>(m, "KernelActivations",
                                "Activation rows as one path's GEMM reads them.")
      .def_ro("row_bytes", &KernelActivations::row_bytes)
      .def_prop_ro(
          "data", [](const KernelActivations& a) { return a.data.copy<uint8_t>(); },
          nb::rv_policy::move)
      .def_prop_ro(
          "scales", [](const KernelActivations& a) { return a.scales.copy<float>(); },
          nb::rv_policy::move)
      .def_prop_ro(
          "starts", [](const KernelActivations& a) { return a.starts.copy<int32_t>(); },
          nb::rv_policy::move);
  nb::class_<KernelMatrix>(m, "KernelMatrix", "A packed weight matrix and one path's GEMM on it.")
      .def(nb::init<const std::string&, const std::string&, FloatMatrix, int,
                    const std::vector<int64_t>&>(),
           nb::arg("isa"), nb::arg("format"), nb::arg("weights"), nb::arg("group_size") = 64,
           nb::arg("splits") = std::vector<int64_t>{})
      .def(nb::init<const std::string&, const MatrixFormat&, int64_t, int64_t, const nb::tuple&>(),
           nb::arg("isa"), nb::arg("format"), nb::arg("rows"), nb::arg("cols"), nb::arg("integers"))
      .def("dequantize", &KernelMatrix::dequantize, nb::arg("row"), nb::rv_policy::move)
      .def_prop_ro("num_panels", &KernelMatrix::num_panels)
      .def_prop_ro("padded_cols", &KernelMatrix::padded_cols)
      .def_prop_ro(
          "data", [](const KernelMatrix& w) { return w.data().copy<uint8_t>(); },
          nb::rv_policy::move)
      .def_prop_ro(
          "scales", [](const KernelMatrix& w) { return w.scales().copy<float>(); },
          nb::rv_policy::move)
      .def("prepare", &KernelMatrix::prepare, nb::arg("x"), nb::arg("step") = 1 << 20)
      .def("gemm", &KernelMatrix::gemm, nb::arg("activations"), nb::arg("out"), nb::arg("m0"),
           nb::arg("m1"), nb::arg("panel0"), nb::arg("panel1"), nb::arg("bias") = nb::none(),
           nb::arg("epilogue") = 0);
}

Array<float> evaluate(const std::string& isa, const std::string& function, FloatVector x) {
  const char* names[] = {"exp", "tanh", "sigmoid", "silu", "gelu_tanh", "round_bf16", "round_f16"};
  int64_t count = static_cast<int64_t>(x.shape(0));
  for (int i = 0; i < 7; ++i) {
    if (function != names[i]) continue;
    Buffer y(count * 4);
    kernel_table(select_isa(isa))
        .evaluate(static_cast<VectorFunction>(i), x.data(), y.as<float>(), count);
    return y.copy<float>();
  }
  throw std::invalid_argument("unknown vector function '" + function + "'");
}

}  // namespace

void bind_kernels(nb::module_& m) {
  bind_isa(m);
  bind_gemm(m);
  m.def("evaluate", &evaluate, nb::arg("isa"), nb::arg("function"), nb::arg("x"),
        "A vector function of one kernel path, element by element.");
}
