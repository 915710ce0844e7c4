// Turns preprocessed CUDA C++ into C++ that g++ compiles:
//
//   __shared__ T a[N];            static T a[N];
//   extern __shared__ T a[];      T* const a = the launch's dynamic shared memory;
//   __global__, __launch_bounds__(N)   nothing, but each kernel gets an entry in a table at the end
//
// Preprocessing comes first because kernels and their bounds are often made by macros.
#include "kernel_source.h"

#include <ctype.h>

namespace {

struct Token {
    size_t begin, end;
    bool word;
};

struct Edit {
    size_t begin, end;
    std::string text;
};

struct Kernel {
    std::string name, thread_limit;
};

/// Tokens of C++ text without comments: words, and single other characters; strings and characters are one token each.
/// Lines that begin with # are skipped.
std::vector<Token> tokens_of(const std::string& text) {
    std::vector<Token> tokens;
    bool line_begins = true;
    for (size_t at = 0; at < text.size();) {
        const char c = text[at];
        if (c == '\n' || isspace((unsigned char)c)) {
            line_begins |= c == '\n';
            at++;
            continue;
        }
        if (c == '#' && line_begins) {
            while (at < text.size() && text[at] != '\n') at++;
            continue;
        }
        line_begins = false;
        size_t end = at + 1;
        if (isalnum((unsigned char)c) || c == '_') {
            // A quote between digits separates them (1'000).
            while (end < text.size() && (isalnum((unsigned char)text[end]) || text[end] == '_' ||
                                         (isdigit((unsigned char)c) && text[end] == '\'')))
                end++;
            tokens.push_back({at, end, true});
        } else {
            if (c == '"' || c == '\'') {
                while (end < text.size() && text[end] != c) end += text[end] == '\\' ? 2 : 1;
                end++;
            }
            tokens.push_back({at, end, false});
        }
        at = end;
    }
    return tokens;
}

class Translation {
public:
    explicit Translation(const std::string& text) : text(text), tokens(tokens_of(text)) {}

    Translated run() {
        for (size_t i = 0; i < tokens.size(); i++) {
            if (is(i, "__shared__")) shared(i);
            if (is(i, "__global__")) kernel(i);
        }
        Translated result;
        result.errors = errors;
        size_t done = 0;
        for (const Edit& edit : edits) {
            result.text += text.substr(done, edit.begin - done) + edit.text;
            done = edit.end;
        }
        result.text += text.substr(done) + table();
        return result;
    }

private:
    bool is(size_t i, const char* what) const { return i < tokens.size() && spelled(i) == what; }
    std::string spelled(size_t i) const { return text.substr(tokens[i].begin, tokens[i].end - tokens[i].begin); }
    void replace(size_t first, size_t last, const std::string& by) {
        edits.push_back({tokens[first].begin, tokens[last].end, by});
    }

    /// The token after the bracket that closes the one at `open`.
    size_t after_brackets(size_t open) const {
        int depth = 0;
        for (size_t i = open; i < tokens.size(); i++) {
            if (is(i, "(")) depth++;
            if (is(i, ")") && --depth == 0) return i + 1;
        }
        return tokens.size();
    }

    void shared(size_t at) {
        if (at == 0 || !is(at - 1, "extern")) {
            const bool already_static = at > 0 && is(at - 1, "static");
            replace(at, at, already_static ? "" : "static");
            return;
        }
        // extern __shared__ [attributes] type name [ ] ;
        size_t end = at;
        while (end < tokens.size() && !is(end, ";")) end++;
        if (end >= tokens.size() || end < at + 5 || !is(end - 1, "]") || !is(end - 2, "[") || !tokens[end - 3].word) {
            errors.push_back("dynamic shared memory is declared as `extern __shared__ TYPE NAME[];`");
            return;
        }
        size_t type = at + 1;
        while (is(type, "__attribute__") || is(type, "alignas")) type = after_brackets(type + 1);
        const std::string name = spelled(end - 3);
        const std::string of = text.substr(tokens[type].begin, tokens[end - 3].begin - tokens[type].begin);
        replace(at - 1, end - 1,
                of + "* const " + name + " = reinterpret_cast<" + of + "*>(phalanx_place.dynamic_shared)");
    }

    void kernel(size_t at) {
        // The driver asks for the symbol, to see that the kernel is extern "C".
        replace(at, at, "__attribute__((visibility(\"default\")))");
        Kernel found;
        size_t i = at + 1;
        for (; i < tokens.size() && !is(i, "(") && !is(i, ";") && !is(i, "{"); i++) {
            if (is(i, "__attribute__")) {
                i = after_brackets(i + 1) - 1;
            } else if (is(i, "__launch_bounds__")) {
                const size_t end = after_brackets(i + 1);
                found.thread_limit = first_argument(i + 1, end - 1);
                replace(i, end - 1, "");
                i = end - 1;
            } else if (tokens[i].word) {
                found.name = spelled(i);
            }
        }
        if (!is(i, "(")) return;
        for (const Kernel& k : kernels) {
            // A declaration before the definition names the kernel twice.
            if (k.name == found.name) return;
        }
        kernels.push_back(found);
    }

    std::string first_argument(size_t open, size_t close) const {
        int depth = 0;
        size_t end = open + 1;
        for (; end < close; end++) {
            if (is(end, "(") || is(end, "<")) depth++;
            if (is(end, ")") || is(end, ">")) depth--;
            if (is(end, ",") && depth == 0) break;
        }
        return text.substr(tokens[open].end, tokens[end].begin - tokens[open].end);
    }

    std::string table() const {
        std::string out = "\n# 1 \"table of kernels\"\n";
        out += "static const PhalanxKernel phalanx_kernels[] = {\n";
        for (const Kernel& k : kernels) {
            const std::string limit = k.thread_limit.empty() ? "0" : k.thread_limit;
            out += "    PhalanxDescribe<decltype(" + k.name + "), " + k.name + ">::entry(\"" + k.name +
                   "\", (unsigned)(" + limit + ")),\n";
        }
        out += "    {nullptr, nullptr, 0, nullptr, 0},\n};\n";
        out += "extern \"C\" __attribute__((visibility(\"default\"))) const PhalanxModule phalanx_module;\n";
        out += "const PhalanxModule phalanx_module = {PHALANX_MODULE_VERSION, " + std::to_string(kernels.size()) +
               ", phalanx_kernels, &phalanx_place, &phalanx_hooks};\n";
        return out;
    }

    const std::string& text;
    const std::vector<Token> tokens;
    std::vector<Edit> edits;
    std::vector<Kernel> kernels;
    std::vector<std::string> errors;
};

}  // namespace

Translated translate_kernels(const std::string& preprocessed) { return Translation(preprocessed).run(); }
